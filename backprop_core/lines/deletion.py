"""Deletes a line: its records move aside as they are. Nothing refers to its artifacts then, and prune can free them."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pydantic import Field

from backprop_core.errors import RunActive, RunUnknown
from backprop_core.lines.prune import digests_of, size_of
from backprop_core.lines.versions import Lines
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.leases import living
from backprop_core.store.locks import is_acquired, nothing

STAMP = "%Y%m%dT%H%M%SZ"  # of the name under which the records of a line lie when it is deleted


class DeletedLine(Record):
    """The tombstone of a line."""

    format: int = 1
    line: str
    at: datetime
    by: str = Field(description="Who deleted it.")
    versions: list[int]
    live: int | None = Field(description="The version that was live.")
    bytes: int = Field(description="Of the artifacts that its versions use; another line may use some of them too.")
    runs: list[str] | None = Field(None, description="The runs that it had; None in records older than this field.")


def check_idle(line: str, store: Store) -> None:
    """Raise RunActive if a run of the line works, releases, or waits for approval."""
    if run := next((run for run in (*living(store), *asking(store)) if line_of(run, store) == line), None):
        raise RunActive(
            f"run {run[:12]} of line {line} has not ended", hint="wait for it, answer its question, or stop it"
        )
    if store.layout.line(line).transaction.is_file():
        raise RunActive(
            f"a release of line {line} has not ended", hint=f"finish it: backprop release {line}, or backprop rollback"
        )


def asking(store: Store) -> Iterator[str]:
    """Runs whose question waits for a person."""
    return (path.name for path in store.layout.questions.glob("*"))


def line_of(run_id: str, store: Store) -> str | None:
    """The line that a run belongs to; in older stores the name of a question is that of its line."""
    spec = store.layout.run(run_id).spec
    if not spec.is_file():
        return run_id
    found: str = json.loads(spec.read_bytes())["spec"]["line"]
    return found


def has_records(line: str, store: Store) -> bool:
    """Whether the store has anything of a line; before its first version it may have votes."""
    return store.layout.line(line).root.is_dir()


def last(line: str, store: Store) -> datetime | None:
    """When a line of this name was last deleted; None if never."""
    mine = (gone for gone in store.layout.deletions() if gone.root.name.rpartition("-")[0] == line)
    whole = (gone.tombstone.read_bytes() for gone in mine if gone.records.is_dir())  # not killed before the end
    return max((DeletedLine.model_validate_json(tombstone).at for tombstone in whole), default=None)


def runs_of(line: str, store: Store) -> Iterator[str]:
    """All runs that are recorded under this name."""
    name = json.dumps(line).encode()
    named = (run.run_id for run in store.layout.begun() if name in run.spec.read_bytes())
    return (run_id for run_id in named if line_of(run_id, store) == line)


def deleted_runs(line: str, store: Store) -> set[str]:
    """The runs of deleted lines of this name; of records without a list, those that had begun by then."""
    found = set[str]()
    for gone in store.layout.deletions():
        tombstone = DeletedLine.model_validate_json(gone.tombstone.read_bytes())
        if tombstone.line == line:
            found |= set(begun_before(tombstone.at, store) if tombstone.runs is None else tombstone.runs)
    return found


def begun_before(time: datetime, store: Store) -> Iterator[str]:
    """The runs whose spec was written before a time."""
    return (run.run_id for run in store.layout.begun() if run.spec.stat().st_mtime < time.timestamp())


def described(line: str, by: str, store: Store) -> DeletedLine:
    """What deleting a line would remove. Raises RunUnknown if the store has nothing of it."""
    lines = Lines(store)
    if not has_records(line, store):
        raise RunUnknown(f"there is no line {line}", hint="`backprop lines` lists all lines")
    named = set[str]().union(*(digests_of(path) for path in store.layout.line(line).root.rglob("*.json")))
    return DeletedLine(
        line=line,
        at=datetime.now(UTC),
        by=by,
        versions=lines.versions(line),
        live=lines.champion(line),
        bytes=sum(size_of(store.layout.artifact(digest)) for digest in named),
    )


def delete(line: str, by: str, store: Store, first: Callable[[], None] = nothing) -> DeletedLine | None:
    """Move the records of a line aside, beside its tombstone; None if there are none. `first` is done before.

    No run of the line works meanwhile. Raises RunActive, and what `first` raises.
    """
    lock = store.lock(f"line-{line}")
    if not is_acquired(lock, timeout=0):
        raise RunActive(f"a run is working on line {line}", hint="wait for it, or stop it")
    try:
        check_idle(line, store)
        first()
        return move_aside(line, by, store) if has_records(line, store) else None
    finally:
        lock.release()


def move_aside(line: str, by: str, store: Store) -> DeletedLine:
    """Move the records of a line. If that is cut off, the line is still there."""
    own = set(runs_of(line, store)) - deleted_runs(line, store)
    gone = described(line, by, store).model_copy(update={"runs": sorted(own)})
    aside = store.layout.deleted(line, gone.at.strftime(STAMP))
    write_atomic(aside.tombstone, gone.model_dump_json())
    store.move_records(store.layout.line(line).root, aside.records, f"line-{line}")
    return gone
