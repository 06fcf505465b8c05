"""Renames a line: its records move as they are, and what names it by its old name is written again.

The note of the renaming comes first, then the directory moves, then the rest; the same command does what a kill has
left. Digests and cache keys know no line, so nothing is trained or split anew: the task that a line's rows have unless
they name one stays that of its first name.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field

from backprop_core.errors import ConfigInvalid, RunActive
from backprop_core.lines.deletion import STAMP, check_idle, deleted_runs, has_records
from backprop_core.lines.versions import Lines
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store, remove_file, write_atomic
from backprop_core.store.layout import RenamedLayout, StoreLayout
from backprop_core.store.locks import is_acquired, nothing


class RenamedLine(Record):
    """The note of a renaming."""

    format: int = 1
    line: str = Field(description="The old name.")
    to: str
    at: datetime
    by: str = Field(description="Who renamed it.")
    done: bool = Field(False, description="Whether nothing names it by its old name any more.")


def first_name(line: str, layout: StoreLayout) -> str:
    """The name under which a line was made: the task and the directory of its rows unless they are named."""
    path = layout.line(line).first_name
    return path.read_text(encoding="utf-8") if path.is_file() else line


def keeper(name: str, layout: StoreLayout) -> str | None:
    """The renamed line whose rows stand under this name, which was its first; None if there is none."""
    files = [path for path in layout.first_names() if path.read_text(encoding="utf-8") == name]
    oldest = min(files, key=lambda path: (path.stat().st_mtime_ns, path), default=None)  # of several the first one
    return oldest.parent.name if oldest else None


def check_rows(line: str, layout: StoreLayout) -> None:
    """Raise ConfigInvalid if where rows of this line would stand, those of another one do."""
    name = first_name(line, layout)
    other = keeper(name, layout)
    if other not in (None, line):
        raise ConfigInvalid(
            f"line {other} was called {name}, and its rows stand under that name",
            hint=f"for that line name it by its new name, {other}; for a new line choose another name",
        )


def check_begins(line: str, store: Store) -> None:
    """Raise ConfigInvalid if a line of this name would begin while a renaming of the one before is cut off."""
    if has_records(line, store):
        return
    for note, _ in noted(store.layout):
        if note.line == line and not note.done:
            raise ConfigInvalid(
                f"line {line} is being renamed to {note.to}, which was cut off",
                hint=f"finish it: backprop line rename {line} {note.to}",
            )


def forget_others(line: str, to: str, store: Store) -> None:
    """Remove the notes of renamings of a line to other names that were cut off before anything moved."""
    for note, place in noted(store.layout):
        if note.line == line and note.to != to and not note.done and has_records(line, store):
            remove_file(place.note)


def noted(layout: StoreLayout) -> list[tuple[RenamedLine, RenamedLayout]]:
    """All renamings, the first one first."""
    found = [(RenamedLine.model_validate_json(one.note.read_bytes()), one) for one in layout.renamings()]
    return sorted(found, key=lambda each: (each[0].at, each[1].root.name))


def name_now(line: str, layout: StoreLayout) -> str | None:
    """The name of a line that was renamed; None if no line had this name, or one has it again."""
    now = line
    for note, _ in noted(layout):
        now = note.to if note.line == now else now
    return now if now != line and not layout.line(line).root.is_dir() else None


def unfinished(line: str, to: str, layout: StoreLayout) -> RenamedLayout | None:
    """A renaming that was cut off."""
    found = (place for note, place in noted(layout) if (note.line, note.to, note.done) == (line, to, False))
    return next(found, None)


def new_place(note: RenamedLine, layout: StoreLayout) -> RenamedLayout:
    """Where the note of a renaming goes: its name has whole seconds, and two lines may have had one name in one."""
    seconds = (note.at + timedelta(seconds=more) for more in count())
    places = (layout.renamed(note.line, at.strftime(STAMP)) for at in seconds)
    return next(place for place in places if not place.note.is_file())


def check_free(line: str, to: str, store: Store) -> None:
    """Raise ConfigInvalid if the new name is that of another line, RunActive if either has something to do."""
    half_done = unfinished(line, to, store.layout) and not has_records(line, store)
    if line == to or (has_records(to, store) and not half_done):
        raise ConfigInvalid(f"there is a line {to} already", hint="choose another name")
    for name in (line, to):
        check_idle(name, store)


def rename(
    line: str,
    to: str,
    by: str,
    store: Store,
    first: Callable[[], None] = nothing,
    last: Callable[[], None] = nothing,
) -> RenamedLine:
    """Give a line another name, between `first` and `last`. No run of the line works meanwhile.

    Raises ConfigInvalid, RunActive, and what `first` and `last` raise.
    """
    check_free(line, to, store)
    with locked(line, store), locked(to, store):
        check_free(line, to, store)
        first()
        forget_others(line, to, store)
        note = RenamedLine(line=line, to=to, at=datetime.now(UTC), by=by)
        place = unfinished(line, to, store.layout)
        if place:
            note = RenamedLine.model_validate_json(place.note.read_bytes())
        else:
            place = new_place(note, store.layout)
        write_atomic(place.note, note.model_dump_json())
        carry_out(note, store)
        last()
        done = note.model_copy(update={"done": True})
        write_atomic(place.note, done.model_dump_json())
        return done


@contextmanager
def locked(line: str, store: Store) -> Iterator[None]:
    """Keep runs of a line from beginning. Raises RunActive."""
    lock = store.lock(f"line-{line}")
    if not is_acquired(lock, timeout=0):
        raise RunActive(f"a run is working on line {line}", hint="wait for it, or stop it")
    try:
        yield
    finally:
        lock.release()


def carry_out(note: RenamedLine, store: Store) -> None:
    """Move the records and write again what names the line; twice is as once."""
    layout, line, to = store.layout, note.line, note.to
    old, new = layout.line(line), layout.line(to)
    if old.root.is_dir():
        if not old.first_name.is_file():
            write_atomic(old.first_name, line)
        store.move_records(old.root, new.root, f"line-{line}")
    for release in sorted(new.releases.glob("*.json")):
        written_again(release, line, to)
    others = deleted_runs(line, store)
    for run in layout.begun():
        if run.run_id not in others:
            written_again(run.spec, line, to, "spec")
    for run in layout.ended():
        if run.run_id not in others:
            written_again(run.result, line, to)
            written_again(run.result, line, to, "spec")
    for number in Lines(store).versions(to):
        pin = layout.pin(f"{line}@{number}")
        if pin.is_file():
            pin.rename(layout.pin(f"{to}@{number}"))
    rename_in_forgotten(line, to, store)


def rename_in_forgotten(line: str, to: str, store: Store) -> None:
    """Give the line its new name in the list of forgotten rows."""
    from backprop_core.data.forgotten_rows import forgotten, write  # slow to import

    known = forgotten(store)
    if (named := {row: one.renamed(line, to) for row, one in known.items()}) != known:
        write(named.values(), store)


def written_again(path: Path, line: str, to: str, *within: str) -> None:
    """Write a record with the new name. Its time, which says when a run ended, stays but for a nanosecond.

    By that it is another file for the caches of what is read once.
    """
    raw = path.read_bytes()
    if json.dumps(line).encode() not in raw:
        return
    record: dict[str, Any] = json.loads(raw)
    part = record
    for name in within:
        part = part.get(name) or {}
    if part.get("line") == line:
        part["line"] = to
        before = path.stat()
        write_atomic(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
