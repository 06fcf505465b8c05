"""The candidates that a line has rejected."""

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from backprop_core.lines import deletion
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RunId
from backprop_core.store.artifacts import Store
from tasks.runs.ended_runs import ended_at, results
from tasks.runs.readable_records import UNREADABLE, of_line

MOST = 10


class RejectedReport(Record):
    """A candidate that did not go live."""

    run_id: RunId
    at: datetime
    average: float | None
    reason: str


def rejected(line: str, config: Settings) -> list[RejectedReport]:
    """The line's newest rejected candidates, the newest first; none of a deleted line of the same name.

    Raises ArtifactDamaged.
    """
    store = Store(config.store_path)
    with of_line(line):
        deleted = deletion.last(line, store)
    newest = sorted(results(store), reverse=True)
    mine = (found for time, path in newest if (found := rejected_report(line, path, time)))
    return list(islice((each for each in mine if deleted is None or each.at > deleted), MOST))


def rejected_report(line: str, path: Path, time: int) -> RejectedReport | None:
    """A run whose candidate a line has rejected; None for any other, and for a result that cannot be read."""
    try:
        result = ended_at(path, time)
    except UNREADABLE:  # nothing says whose it is
        return None
    info = flow_info(result.flow or "")
    if (result.line, result.status) != (line, "rejected") or not (info.trains and info.makes_a_version):
        return None
    at = datetime.fromtimestamp(time / 1e9, UTC)
    return RejectedReport(run_id=path.parent.name, at=at, average=result.average, reason=result.reason)
