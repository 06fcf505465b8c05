"""Makes an earlier version of a line live again."""

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from flows.declared import declared
from flows.release import go_live
from tasks.runs.manual_promotion import act
from tasks.runs.resolve_earlier import to_rollback


@declared("rollback", title=lambda given: f"roll back {given['line']}")
def rollback(
    line: LineName, to: int | None = None, force: bool = False, reason: str = "", run_id: str | None = None
) -> RunResult:
    """Set a line's champion, Ollama model and Hub repository back to an earlier version: all places, or none.

    A version that did not pass the gate needs `force`.

    Args:
        line: The line.
        to: Number of the version; default: the one that was live before the champion.
        force: Make it live even if the gate refused it or never judged it; needs a reason.
        reason: Why; kept in the record with your name.
        run_id: The interrupted rollback to continue; everything else is read from its record.
    """
    said = act(reason, force=force)
    return go_live(line, lambda store: to_rollback(line, to, said, store), run_id, fresh=False)
