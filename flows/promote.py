"""A line's version out of what `train` or `multi-run` made."""

from prefect import flow

from backprop_core.refs import RunResult
from backprop_core.texts import LineName
from flows.pipeline import pipeline
from flows.shown import short, shown
from tasks.line import version_of, working_on
from tasks.prepare import promoted
from tasks.pruning import retain
from tasks.publishing import advance
from tasks.run import recorded


@flow(name="promote", persist_result=False)
@shown(lambda given: f"promote {short(given['ref'])} to {given['line']}")
def promote(ref: str, line: LineName, run_id: str | None = None) -> RunResult:
    """Make the merged adapter of a run the champion of a line, which begins with it or goes on from it.

    The run's stages are gone through once more; all that is in the cache costs nothing.

    Args:
        ref: The run_id of a `train` or `multi-run`, or the start of one.
        line: The line whose champion it becomes.
        run_id: Of an interrupted promotion that shall go on.
    """
    with working_on(line), recorded(lambda store: promoted(ref, line, store), run_id=run_id, fresh=False) as run:
        made = pipeline(run)
        advance(run, version_of(run, *made), made.heldout[made.datasets[-1].task])
    retain(run)
    assert run.outcome is not None
    return run.outcome
