"""An earlier version of a line, live again."""

from prefect import flow

from backprop_core.refs import RunResult
from backprop_core.texts import LineName
from flows.release import go_live
from flows.shown import shown
from tasks.prepare import to_rollback


@flow(name="rollback", persist_result=False)
@shown(lambda given: f"roll back {given['line']}")
def rollback(line: LineName, to: int | None = None, run_id: str | None = None) -> RunResult:
    """Bring champion, Ollama's model and the Hub's repository back to an earlier version of a line, or none of them.

    Args:
        line: The line.
        to: Number of the version; the one that was live before the champion, if not given.
        run_id: Of an interrupted rollback that shall go on.
    """
    return go_live(line, lambda store: to_rollback(line, to, store), run_id, fresh=False)
