"""Finds the rebuild that an interrupted run belongs to: which line, and which forgotten rows."""

from backprop_core.data.forgotten_rows import forgotten
from backprop_core.errors import RunUnknown
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import REBUILD
from tasks.runs import prepared_run
from tasks.runs.rebuild import LONGEST


class UnfinishedRebuild(Record):
    """What a rebuild is asked for: the line, the rows, and the versions that have seen them, as LINE@NUMBER."""

    line: str
    rows: list[str]
    seen: list[str]


def unfinished(prefix: str, config: Settings) -> UnfinishedRebuild | None:
    """The rebuild of the run that starts with `prefix`; None if it is no run of one.

    Raises RunUnknown, RefAmbiguous.
    """
    store = Store(config.store_path)
    name = prepared_run.load(prepared_run.full_run_id(prefix, store), store).spec.line
    if not REBUILD.search(name):
        return None
    line = original(REBUILD.sub("", name), store)
    rows = {row: [seen for seen in one.versions if line_of(seen) == line] for row, one in forgotten(store).items()}
    seen = sorted({version for versions in rows.values() for version in versions})
    return UnfinishedRebuild(line=line, rows=sorted(row for row, versions in rows.items() if versions), seen=seen)


def line_of(version: str) -> str:
    """The line of LINE@NUMBER."""
    return version.partition("@")[0]


def original(start: str, store: Store) -> str:
    """The line that is rebuilt, by the start of its name. Raises RunUnknown if it is gone, or several begin so."""
    found = [name for name in Lines(store).names() if name[:LONGEST] == start and not REBUILD.search(name)]
    if len(found) != 1:
        raise RunUnknown(
            f"which line the rebuild of {start} belongs to is not known any more",
            hint="run `backprop data forget ROW --rebuild` again",
        )
    return found[0]
