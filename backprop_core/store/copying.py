"""Copies a store into another one, either a directory or in a bucket: by digest, verified, and only what is missing.

What a copy that was cut off has done, the next one skips. Nothing in the target is overwritten, except a champion
whose line is, version for version, the beginning of the source's.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.layout import StoreLayout
from backprop_core.store.locks import held

OWN = ("leases", "flow-runs", "questions")  # of processes at work on a store: not copied
BUSY = "the store is being pruned"


class Copied(Record):
    """What a copy did."""

    artifacts: int = Field(description="Artifacts that the target did not have.")
    bytes: int = Field(description="Their bytes.")
    records: int = Field(description="Records of lines, runs, pins and finished stages that it did not have.")
    kept: list[str] = Field(description="Records that differ in the target, and stay as they are there.")


def copy(source: Store, target: Store, on_progress: Callable[[int, int], None]) -> Copied:
    """Copy everything that the target lacks. Waits for a prune of either; calls `on_progress(done, total)`."""
    with ExitStack() as locks:
        for store in sorted({source, target}, key=lambda store: store.root):
            locks.enter_context(held(store.lock("prune"), BUSY))
        size, count = copy_artifacts(source, target, on_progress)
        results = copy_results(source, target)
        written, kept = copy_records(source, target)
        return Copied(artifacts=count, bytes=size, records=results + written, kept=kept)


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
    """Copy records of lines, runs and pins, versions before champions: how many, and which differ in the target."""
    written, kept = 0, []
    for path in sorted(source.layout.shared(), key=lambda path: (path.name == "champion", path)):
        name = path.relative_to(source.root)
        if name.parts[0] in OWN or (name.parts[0] == "tombstones" and target.has(path.stem)):
            continue
        content, place = path.read_bytes(), target.root / name
        now = place.read_bytes() if place.is_file() else None
        if now is None or (now != content and name.name == "champion" and continues(name.parts[1], source, target)):
            write_atomic(place, content)
            written += 1
        elif now != content:
            kept.append(name.as_posix())
    return written, kept


def continues(line: str, source: Store, target: Store) -> bool:
    """Whether the target has, of this line, exactly the source's versions; the missing ones were just copied."""
    return versions(line, source.layout) == versions(line, target.layout)


def versions(line: str, layout: StoreLayout) -> dict[str, bytes]:
    """The versions of a line by file name."""
    return {path.name: path.read_bytes() for path in layout.line(line).versions.glob("*.json")}
