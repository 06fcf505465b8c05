"""Fills in how a line keeps what it has learned: merge and replay, chosen when it begins and kept from then on."""

from collections.abc import Sequence

from backprop_core.lines.versions import Live
from backprop_core.schema.refs import Choice
from backprop_core.schema.specs import RunSpec

REPLAY_ROWS = 50  # of each earlier task; docs/continual.md has the figures
AVERAGING = {"strategy", "merge_a", "weight"}  # fields of `merge`
MERGE_A, REPLAY = "merge.merge_a", "training.replay_rows"


def with_memory(spec: RunSpec, live: Live | None) -> tuple[RunSpec, list[Choice]]:
    """The spec with what it leaves open of merge and replay, and the reasons.

    A line that goes on has its own merge, and replays as it began. In other runs nothing is chosen if the spec names
    a strategy, merge_a or λ: such a run is what it says.
    """
    if live:
        return with_replay(spec, live.version.replay_rows or 0, f"as line {spec.line} began")
    if AVERAGING & spec.merge.model_fields_set:
        return spec, []
    merged = spec.model_copy(update={"merge": spec.merge.model_copy(update={"merge_a": True})})
    made, replay = with_replay(merged, REPLAY_ROWS, "of each earlier task, in each epoch; a line keeps it")
    return made, [Choice(field=MERGE_A, value=True, reason="A is averaged as B is; a line keeps it"), *replay]


def with_replay(spec: RunSpec, rows: int, reason: str) -> tuple[RunSpec, list[Choice]]:
    """The spec with rows to replay, unless it says how much to replay."""
    if not rows or {"replay", "replay_rows"} & spec.training.model_fields_set:
        return spec, []
    training = spec.training.model_copy(update={"replay_rows": rows})
    return spec.model_copy(update={"training": training}), [Choice(field=REPLAY, value=rows, reason=reason)]


def chosen_again(choices: Sequence[Choice]) -> list[str]:
    """The fields to choose again when a version is trained again: all but those that a line keeps."""
    return [choice.field for choice in choices if choice.field not in (MERGE_A, REPLAY)]
