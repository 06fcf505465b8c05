"""Copies a store into another one, either a directory or in a bucket: by digest, verified, and only what is missing.

What a copy that was cut off has done, the next one skips. Nothing in the target is overwritten but a champion from
which the source's line has moved on: by its versions and its moves, not by the times of files.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.layout import LineLayout
from backprop_core.store.locks import held, is_acquired

log = logging.getLogger(__name__)
OWN = ("leases", "flow-runs", "questions", "moving")  # of processes at work on a store: not copied
BUSY = "the store is being pruned"


class Copied(Record):
    """What a copy did."""

    artifacts: int = Field(description="Artifacts that the target did not have.")
    bytes: int = Field(description="Their bytes.")
    records: int = Field(description="Records of lines, runs, pins and finished stages that it did not have.")
    kept: list[str] = Field(description="Records that differ there, and lines at work: they stay as they are there.")
    forgotten: list[str] = Field([], description="Forgotten rows that sets of the target still have, by identity.")


def copy(source: Store, target: Store, on_progress: Callable[[int, int], None]) -> Copied:
    """Copy everything that the target lacks. Waits for a prune of either; calls `on_progress(done, total)`."""
    with ExitStack() as locks:
        for store in in_order(source, target):
            locks.enter_context(held(store.lock("prune"), BUSY))
        size, count = copy_artifacts(source, target, on_progress)
        results = copy_results(source, target)
        written, kept = copy_records(source, target)
        return Copied(artifacts=count, bytes=size, records=results + written, kept=kept)


def in_order(source: Store, target: Store) -> list[Store]:
    """Both stores, in the order in which their locks are taken."""
    return sorted({source, target}, key=lambda store: store.root)


def copy_artifacts(source: Store, target: Store, on_progress: Callable[[int, int], None]) -> tuple[int, int]:
    """Copy the artifacts that the target has neither got nor removed; their bytes and number."""
    there, size = target.digests(), 0
    missing = [digest for digest in sorted(source.digests() - there) if not target.was_removed(digest)]
    for number, digest in enumerate(missing):
        on_progress(number, len(missing))
        source.verify(digest)
        size += adopt(source, target, digest)
    return size, len(missing)


def adopt(source: Store, target: Store, digest: str) -> int:
    """Make an artifact of the source one of the target's; its bytes."""
    origin = source.layout.artifact(digest)
    with target.begin("copied") as directory:
        for path in files_below(origin):
            place = directory / path.relative_to(origin)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copyfile if target.shared is None else same_file)(path, place)
        size = sum(path.stat().st_size for path in files_below(directory))
        record = source.layout.record(digest)
        target.take(directory, digest, record.read_bytes() if record.is_file() else None)
    return size


def files_below(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def same_file(path: Path, place: Path) -> None:
    """The same content in the local copy of a bucket: a second name of the file on the same disk, else a copy."""
    try:
        os.link(path, place)  # an artifact's files are read-only
    except OSError:
        shutil.copyfile(path, place)


def copy_results(source: Store, target: Store) -> int:
    """Copy records of finished stages; their number."""
    missing = sorted(source.results() - target.results())
    for key in missing:
        if source.has_result(key):
            write_atomic(target.layout.cache_result(key), source.layout.cache_result(key).read_bytes())
            write_atomic(target.layout.cache_key(key), source.layout.cache_key(key).read_bytes())
            target.keep_result(key)
    return len(missing)


def copy_records(source: Store, target: Store) -> tuple[int, list[str]]:
    """Copy records of lines, runs and pins: how many, and which stay as they are in the target."""
    mine = source.layout
    apart = (*OWN, mine.lines.name, mine.forgotten.name)
    rest = [path for path in mine.shared() if path.relative_to(mine.root).parts[0] not in apart]
    lines = sorted(path.name for path in mine.lines.glob("*"))
    done = [copy_missing(rest, source, target), *(copy_line(line, source, target) for line in lines)]
    return sum(written for written, _ in done), [name for _, kept in done for name in kept]


def copy_missing(paths: Iterable[Path], source: Store, target: Store) -> tuple[int, list[str]]:
    """Copy the records that the target lacks: how many, and which differ there."""
    written, kept = 0, []
    for path in sorted(paths):
        name = path.relative_to(source.root)
        if source.layout.tombstone(path.stem) == path and target.has(path.stem):
            continue
        now = content_of(target.root / name)
        if now is None:
            write_atomic(target.root / name, path.read_bytes())
            written += 1
        elif now != path.read_bytes():
            kept.append(name.as_posix())
    return written, kept


def copy_line(line: str, source: Store, target: Store) -> tuple[int, list[str]]:
    """The same for the records of a line, unless a run works on it in one of the stores: then it stays."""
    with ExitStack() as locks:
        for store in in_order(source, target):
            lock = store.lock(f"line-{line}")
            if not is_acquired(lock, timeout=0):
                log.warning("line %s is not copied: a run is working on it in %s", line, store.root)
                return 0, [source.layout.line(line).root.relative_to(source.root).as_posix()]
            locks.callback(lock.release)
        return copy_idle_line(line, source, target)


def copy_idle_line(line: str, source: Store, target: Store) -> tuple[int, list[str]]:
    """Copy the versions of a line and what else is only added; then the champion and the moves, if those continue."""
    mine, theirs = source.layout.line(line), target.layout.line(line)
    every = {path for path in files_below(mine.root) if source.layout.is_shared(path)}
    moves = {path for path in every if path.parent == mine.moves}
    begun = every & {mine.transaction}  # a release that was cut off is ended where it began
    written, kept = copy_missing(every - moves - begun - {mine.champion}, source, target)
    if begun or theirs.transaction.is_file() or not continues(mine, theirs):
        left = [path for path in moves | begun | {mine.champion} if differs(path, source, target)]
        return written, kept + sorted(path.relative_to(source.root).as_posix() for path in left)
    if differs(mine.champion, source, target):
        write_atomic(theirs.champion, mine.champion.read_bytes())
        written += 1
    more, differ = copy_missing(moves, source, target)
    return written + more, kept + differ


def continues(mine: LineLayout, theirs: LineLayout) -> bool:
    """Whether this line has been in the state in which the other one is, and has moved on since, if at all.

    Runs make higher versions the champion; whatever else does leaves a move, with the champion before it.
    """
    known, new = moves_of(theirs), moves_of(mine)
    if versions(mine) != versions(theirs) or not known.items() <= new.items():
        return False
    live, there = champion(mine), champion(theirs)
    since = sorted((move for name, move in new.items() if name not in known), key=lambda move: move.at)
    return there in (0, live) or there <= (since[0].before if since else live)


class Moved(NamedTuple):
    """A manual promotion: when, and the champion before; 0: none."""

    at: datetime
    before: int


def moves_of(line: LineLayout) -> dict[str, Moved]:
    """The manual promotions of a line by file name."""
    notes = {path.name: json.loads(path.read_bytes()) for path in line.moves.glob("[!.]*.json")}
    return {name: Moved(datetime.fromisoformat(note["act"]["at"]), note["before"] or 0) for name, note in notes.items()}


def versions(line: LineLayout) -> dict[str, bytes]:
    """The versions of a line by file name."""
    return {path.name: path.read_bytes() for path in line.versions.glob("[!.]*.json")}


def champion(line: LineLayout) -> int:
    """The number of the live version; 0: none."""
    return int(content_of(line.champion) or 0)


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def differs(path: Path, source: Store, target: Store) -> bool:
    """Whether a record of the source is another one in the target, or is not there."""
    content = content_of(path)
    return content is not None and content_of(target.root / path.relative_to(source.root)) != content
