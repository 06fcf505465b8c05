"""The table of flows. Deployments, verbs, `--help`, `resume`, `--plan` and `store prune` read it.

It imports nothing, so that `backprop --help` is fast. A flow's parameters and body are in its own module in `flows/`,
its verb's flags in `flows/cli/`. A stored run names its flow by its name, so a name is never changed.
"""

from typing import Literal, NamedTuple


class Verb(NamedTuple):
    """The command that runs a flow."""

    name: str
    module: str  # of flows.cli, which has a function of the verb's name
    help: str  # its line in `backprop --help`
    after: str  # the verb before it in `backprop --help`


class FlowInfo(NamedTuple):
    """What a flow is, apart from its code."""

    name: str
    deployment: str = ""  # name of its deployment, which says what a run does
    verb: Verb | None = None
    module: str = ""  # in flows; by default called as the flow is
    alone: bool = False  # one run at a time is enough
    per_line: bool = False  # the file of a line makes a deployment, too
    trains: bool = False
    resumable: bool = True
    only_scores: bool = False  # its runs make no adapter of their own
    of_line: bool = False  # its runs belong to a line, so that pruning the line may remove what they leave
    keeps_result: bool = False  # `store prune` keeps its recent results
    rows: Literal["own", "line", "earlier", "earlier if known"] = "own"
    """Which rows its runs are about: their own; their own beside those of the line; those of the earlier run that they
    are about, which have to be known, or may be unknown."""

    @property
    def function(self) -> str:
        """Name of its function."""
        return self.name.replace("-", "_")

    @property
    def makes_candidates(self) -> bool:
        """Whether its runs can be promoted to a line."""
        return self.trains and not self.of_line


FLOWS = {
    flow.name: flow
    for flow in (
        FlowInfo(
            "train",
            "train-once",
            Verb("train", "running", "One LoRA run on one dataset, scored on held-out rows.", after="demo"),
            alone=True,
            trains=True,
            keeps_result=True,
        ),
        FlowInfo(
            "multi-run",
            "train-on-several-datasets",
            Verb("multi-run", "running", "One run per dataset, merged after each, scored on all tasks.", after="train"),
            alone=True,
            trains=True,
            keeps_result=True,
        ),
        FlowInfo(
            "retrain",
            "retrain-a-line",
            Verb(
                "retrain",
                "running",
                "The next run of a line from its champion; live if the gate lets it.",
                after="multi-run",
            ),
            per_line=True,
            trains=True,
            of_line=True,
            keeps_result=True,
            rows="line",
        ),
        FlowInfo(
            "drift",
            "look-for-drift",
            module="staleness",
            per_line=True,
            resumable=False,
            only_scores=True,
            of_line=True,
            rows="line",
        ),
        FlowInfo(
            "promote",
            "promote-a-run",
            Verb("promote", "running", "Make what a run made the champion of a line.", after="retrain"),
            of_line=True,
            keeps_result=True,
            rows="earlier",
        ),
        FlowInfo(
            "evaluate",
            "evaluate-a-run",
            Verb("evaluate", "running", "Score what a run made, on its held-out rows or on others.", after="replay"),
            only_scores=True,
            rows="earlier",
        ),
        FlowInfo(
            "export",
            "export-a-run",
            Verb("export", "running", "GGUF and other files of what a run made, checked against it.", after="replay"),
            keeps_result=True,
            rows="earlier if known",
        ),
        FlowInfo(
            "publish",
            "publish-a-run",
            Verb("push", "shipping", "Adapter, tokenizer and model card of what a run made, to the Hub.", "generate"),
            rows="earlier if known",
        ),
        FlowInfo(
            "release",
            "release-a-line",
            Verb("release", "shipping", "A line's champion, to Ollama and the Hub: all of it or nothing.", "push"),
            of_line=True,
        ),
        FlowInfo(
            "rollback",
            "roll-back-a-line",
            Verb("rollback", "shipping", "An earlier version of a line, live again everywhere.", after="release"),
            of_line=True,
        ),
    )
}


def flow_info(name: str) -> FlowInfo:
    """A flow by the name that a stored run has; of one that is not in the table, what all flows have in common."""
    return FLOWS.get(name, FlowInfo(name))
