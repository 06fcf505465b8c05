"""Moves the records of a line in a bucket, as a directory moves: wherever it is cut off, all of it has moved, or none.

The note comes first, with the etag of each file. Then each file is copied, and only then is one removed, the champion
first: from a line without one no machine goes on. Who next takes the lock that the note names finishes the move. If
another machine has changed the records meanwhile, they stay, and what was removed of them is written again.
"""

import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.store.layout import LineLayout

if TYPE_CHECKING:
    from backprop_core.store.sharing import Shared


class Move(Record):
    """Records that move from one directory of the store to another."""

    format: int = 1
    lock: str = Field(description="Who moves them, and who finishes it, has this lock.")
    old: str
    new: str
    files: dict[str, str] = Field(description="The etag of each file, by its name in the directory.")


def move(shared: "Shared", old: Path, new: Path, lock: str) -> None:
    """Give the records in a directory another place. Only for who has the lock. Raises LeaseLost, StoreConflict."""
    shared.leases.confirm(lock)
    root = shared.layout.root
    names = [path.relative_to(root).as_posix() for path in (old, new)]
    begun = Move(lock=lock, old=names[0], new=names[1], files=shared.mirror.seen(old))
    note = shared.layout.moving(uuid.uuid4().hex)
    shared.mirror.put(note, begun.model_dump_json().encode())
    finish(shared, begun, note)


def locks(shared: "Shared") -> set[str]:
    """The locks of moves that have begun and have not ended."""
    return {begun.lock for begun, _ in all_begun(shared)}


def settle(shared: "Shared", lock: str) -> None:
    """Finish or undo the moves that were cut off. Only for who has the lock, of which both sides are the same."""
    for begun, note in all_begun(shared):
        if begun.lock == lock:
            left = shared.mirror.seen(shared.layout.root / begun.old)
            (finish if left.items() <= begun.files.items() else undo)(shared, begun, note)


def all_begun(shared: "Shared") -> Iterator[tuple[Move, Path]]:
    """The moves that have begun and have not ended, with their notes."""
    for note in sorted(shared.layout.all_moving()):
        yield Move.model_validate_json(note.read_bytes()), note


def finish(shared: "Shared", begun: Move, note: Path) -> None:
    """Copy what is still in the old place, then remove it there."""
    old, new = shared.layout.root / begun.old, shared.layout.root / begun.new
    copy(shared, old, new, begun.files)
    shared.leases.confirm(begun.lock)
    remove(shared, old, begun.files)
    shutil.rmtree(old, ignore_errors=True)
    shared.mirror.remove(note)


def undo(shared: "Shared", begun: Move, note: Path) -> None:
    """Write again what was removed in the old place, then remove the copies."""
    old, new = shared.layout.root / begun.old, shared.layout.root / begun.new
    copy(shared, new, old, [name for name in begun.files if not (old / name).is_file()])
    remove(shared, new, begun.files)
    shared.mirror.remove(note)


def copy(shared: "Shared", source: Path, target: Path, names: Iterable[str]) -> None:
    for name in sorted(names):
        if (source / name).is_file():
            shared.mirror.put(target / name, (source / name).read_bytes())


def remove(shared: "Shared", directory: Path, names: Iterable[str]) -> None:
    champion = LineLayout(directory).champion
    for path in sorted((directory / name for name in names), key=lambda path: (path != champion, path)):
        if path.is_file():
            shared.mirror.remove(path)
