"""The table of flows. Deployments, verbs, `--help`, `resume`, `--plan` and `store prune` read it.

It imports nothing, so that `backprop --help` is fast. A flow's parameters and body are in its own module in `flows/`,
its verb's flags in `flows/cli/`. A stored run names its flow by its name, so a name is never changed.
"""

from typing import Literal, NamedTuple

BY = "by:"  # prefix of a flow run's tag that names the user of the page who started it


class Verb(NamedTuple):
    """The command that runs a flow."""

    name: str
    module: str  # of flows.cli, which has a function of the verb's name
    help: str  # its line in `backprop --help`
    example: str
    after: str  # the verb before it in `backprop --help`


class FlowInfo(NamedTuple):
    """What a flow is, apart from its code."""

    name: str
    deployment: str = ""  # name of its deployment, which says what a run does
    verb: Verb | None = None
    module: str = ""  # in flows; by default called as the flow is
    alone: bool = False  # one run at a time is enough
    cpu_only: bool = False  # its deployment goes where no GPU is
    per_line: bool = False  # the file of a line makes a deployment, too
    trains: bool = False
    resumable: bool = True
    only_scores: bool = False  # its runs make no adapter of their own
    of_line: bool = False  # its runs belong to a line, so that pruning the line may remove what they leave
    makes_a_version: bool = False  # of a line, if the gate accepts what its runs have
    run_of_a_version: str = ""  # what a run that is about one version is called in MLflow
    keeps_result: bool = False  # `store prune` keeps its recent results
    rows: Literal["own", "line", "stored", "earlier", "earlier if known"] = "own"
    """Which rows its runs are about: their own; their own beside those of the line; those that the line has stored;
    those of the earlier run that they are about, which have to be known, or may be unknown."""

    @property
    def function(self) -> str:
        """Name of its function."""
        return self.name.replace("-", "_")

    @property
    def makes_candidates(self) -> bool:
        """Whether its runs can be promoted to a line."""
        return self.trains and not (self.of_line or self.only_scores)


FLOWS = {
    flow.name: flow
    for flow in (
        FlowInfo(
            "train",
            "train-once",
            Verb(
                "train",
                "running",
                "Train one LoRA adapter on one dataset and score it.",
                "backprop train --data support.jsonl --steps 100",
                after="demo",
            ),
            alone=True,
            trains=True,
            keeps_result=True,
        ),
        FlowInfo(
            "multi-run",
            "train-on-several-datasets",
            Verb(
                "multi-run",
                "running",
                "Train on datasets in a row, merge after each, score all.",
                "backprop multi-run --data april.jsonl --data may.jsonl",
                after="train",
            ),
            alone=True,
            trains=True,
            keeps_result=True,
        ),
        FlowInfo(
            "sweep",
            "try-settings",
            Verb(
                "sweep",
                "sweeping",
                "Try values of training fields, and say which to take.",
                "backprop sweep --data support.jsonl --rows 500 --set training.learning_rate=1e-4,5e-4",
                after="multi-run",
            ),
            alone=True,
            trains=True,
            only_scores=True,
        ),
        FlowInfo(
            "retrain",
            "retrain-a-line",
            Verb(
                "retrain",
                "running",
                "Train a line on new data; it goes live if the gate accepts.",
                "backprop retrain --line support --data night.jsonl",
                after="multi-run",
            ),
            per_line=True,
            trains=True,
            of_line=True,
            makes_a_version=True,
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
            Verb(
                "promote",
                "running",
                "Make the adapter of a run the champion of a line.",
                "backprop promote RUN_ID --line support",
                after="retrain",
            ),
            of_line=True,
            makes_a_version=True,
            keeps_result=True,
            rows="earlier",
        ),
        FlowInfo(
            "rebase",
            "rebase-a-line",
            Verb(
                "rebase",
                "rebasing",
                "Train a line's stored datasets on another base.",
                "backprop rebase support --model Qwen/Qwen3-8B --plan",
                after="promote",
            ),
            trains=True,
            of_line=True,
            makes_a_version=True,
            keeps_result=True,
            rows="stored",
        ),
        FlowInfo(
            "evaluate",
            "evaluate-a-run",
            Verb(
                "evaluate",
                "running",
                "Score the adapter of a run, on its held-out or other rows.",
                "backprop evaluate support --data new.jsonl",
                after="replay",
            ),
            only_scores=True,
            rows="earlier",
        ),
        FlowInfo(
            "bench",
            "compare-settings",
            Verb(
                "bench",
                "benchmarking",
                "Compare strategies, replay and rates on your datasets.",
                "backprop bench support --replay 0,50 --orders 3",
                after="evaluate",
            ),
            alone=True,
            only_scores=True,
            keeps_result=True,
        ),
        FlowInfo("generate", "answer-prompts", resumable=False, only_scores=True, rows="earlier if known"),
        FlowInfo(
            "export",
            "export-a-run",
            Verb(
                "export",
                "running",
                "Write the model of a run as GGUF or other files.",
                "backprop export support --quantization q4_k_m --output models",
                after="replay",
            ),
            keeps_result=True,
            rows="earlier if known",
        ),
        FlowInfo(
            "publish",
            "publish-a-run",
            Verb(
                "push",
                "shipping",
                "Push adapter, tokenizer and card of a run to the Hub.",
                "backprop push support --repo OWNER/NAME",
                after="generate",
            ),
            cpu_only=True,
            rows="earlier if known",
        ),
        FlowInfo(
            "release",
            "release-a-line",
            Verb(
                "release",
                "shipping",
                "Publish a champion to Ollama and the Hub, all or nothing.",
                "backprop release support --ollama support",
                after="push",
            ),
            cpu_only=True,
            of_line=True,
            run_of_a_version="release {line} v{number}",
        ),
        FlowInfo(
            "rollback",
            "roll-back-a-line",
            Verb(
                "rollback",
                "shipping",
                "Make an earlier version of a line live again everywhere.",
                "backprop rollback support --to 3",
                after="release",
            ),
            cpu_only=True,
            of_line=True,
            run_of_a_version="roll back {line} to v{number}",
        ),
    )
}


def flow_info(name: str) -> FlowInfo:
    """A flow by the name that a stored run has; of one that is not in the table, what all flows have in common."""
    return FLOWS.get(name, FlowInfo(name))
