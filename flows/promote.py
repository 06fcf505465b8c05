"""Makes the adapter of a `train` or `multi-run` the champion of a line, through the line's gate."""

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from flows.declared import declared
from flows.pipeline import promotion
from flows.run_names import short
from tasks.runs.flow_run import recorded
from tasks.runs.line_state import working_on
from tasks.runs.manual_promotion import act
from tasks.runs.prune import retain
from tasks.runs.resolve_earlier import promoted
from tasks.stages.publishing import advance


@declared("promote", title=lambda given: f"promote {short(given['ref'])} to {given['line']}")
def promote(ref: str, line: LineName, force: bool = False, reason: str = "", run_id: str | None = None) -> RunResult:
    """Make the merged adapter of a run the champion of a line. A line that does not exist starts with it.

    The run's stages are repeated from the cache. The line's gate compares the adapter with the champion and the base,
    on the held-out rows of line and run; if the gate refuses it, the run is `rejected`. The line keeps its tasks,
    held-out rows and learned rows.

    Args:
        ref: The run_id of a `train` or `multi-run`, or the start of one.
        line: The line whose champion it becomes.
        force: Make it the champion even if the gate refuses it; needs a reason.
        reason: Why; kept in the record with your name.
        run_id: The interrupted promotion to continue; everything else is read from its record.
    """
    said = act(reason, force=force)
    with (
        working_on(line),
        recorded(lambda store: promoted(ref, line, said, store), run_id=run_id, fresh=False) as (run, outcome),
    ):
        if made := promotion(run):
            advance(run, outcome, made)
    retain(run.spec, outcome.result)
    return outcome.result
