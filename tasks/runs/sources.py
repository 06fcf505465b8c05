"""Finds, downloads and hashes a run's data before anything is computed, and keeps downloads for the run.

A command does this once: the check before the run hands its downloads and hashes on to the run. A local file that has
changed in between is hashed again. A run keeps its downloads in runs/<run_id>/sources/ until it ends, so that it can be
resumed without the server. Pruning removes those of runs that are not resumed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from backprop_core.data import loading
from backprop_core.data.loading import find, snapshot
from backprop_core.data.sources import is_web, members
from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.redaction import blank_address
from backprop_core.schema.field_types import PACKED, is_address, is_sql
from backprop_core.schema.records import Record
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store, fsync
from backprop_core.store.cache_keys import canonical


class Files(NamedTuple):
    """A dataset's files by digest."""

    data: SourceRef
    heldout: SourceRef | None


class Source(Record):
    """A dataset's files by digest, with its name and task."""

    name: str
    task: str
    data: SourceRef
    heldout: SourceRef | None

    def moved(self, move: Callable[[SourceRef], SourceRef]) -> "Source":
        """The same files in other places."""
        return self.model_copy(update={"data": move(self.data), "heldout": self.heldout and move(self.heldout)})


def sources(datasets: Sequence[DatasetSpec], scratch: Path, *, task: str | None = None) -> list[Source]:
    """Hash the datasets' files; downloads go to `scratch`. A dataset's task is its own, else `task`, else its name.

    Raises what `loading.find` and `loading.snapshot` raise.
    """
    return [source(dataset, scratch, task=task) for dataset in datasets]


Elsewhere = Callable[[str, str | None, Path], SourceRef | None]  # (path, encoding, scratch) -> what is missing there


class HandedOn(NamedTuple):
    """What a command found before its run: the directory of its downloads, and the files by dataset."""

    store: Store
    scratch: Path
    known: dict[str, Files]
    elsewhere: Elsewhere | None


_handed_on: list[HandedOn] = []  # one at most; Prefect starts the run, so it cannot be passed


def source(dataset: DatasetSpec, scratch: Path, *, task: str | None) -> Source:
    """A dataset's files, with its name and task."""
    name, files = stem(dataset.path), files_of(dataset, scratch)
    return Source(name=name, task=dataset.task or task or task_name(name), data=files.data, heldout=files.heldout)


def check(datasets: Iterable[DatasetSpec], scratch: Path) -> None:
    """Find the files of datasets and read the first rows of each, as `flows.steps.rows` reads them.

    Raises what `sources` and `loading.check` raise.
    """
    for dataset in datasets:
        files = files_of(dataset, scratch)
        loading.check(files.data, dataset)
        if files.heldout and dataset.heldout:
            loading.check(files.heldout, dataset.model_copy(update={"path": dataset.heldout}))


def files_of(dataset: DatasetSpec, scratch: Path) -> Files:
    """Hash a dataset's files, or reuse the result of this command."""
    known = _handed_on[0].known if _handed_on else {}
    asked = canonical([dataset.model_dump(mode="json"), state(dataset.path), state(dataset.heldout)])
    if asked not in known:
        known[asked] = found(dataset, scratch)
    return known[asked]


def state(path: str | None) -> list[list[str | int]]:
    """Name, size, time and inode of each local file that a path names: what changes when its bytes do."""
    if path is None or is_address(path):
        return []
    with suppress(OSError, ValueError):  # reading it says what is wrong
        stats = [(file.name, file.stat()) for file in members(path) or [Path(os.path.expanduser(path))]]
        return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats]
    return []


def found(dataset: DatasetSpec, scratch: Path) -> Files:
    """Find, download and hash a dataset's files."""
    heldout = dataset.heldout
    return Files(
        data=copied(dataset.path, dataset, scratch) or find(dataset, scratch=scratch),
        heldout=None
        if heldout is None
        else copied(heldout, dataset, scratch) or snapshot(heldout, scratch=scratch, encoding=dataset.encoding),
    )


def copied(path: str, dataset: DatasetSpec, scratch: Path) -> SourceRef | None:
    """A file that is missing here, where this command knows a copy of it."""
    elsewhere = _handed_on[0].elsewhere if _handed_on else None
    return elsewhere(path, dataset.encoding, scratch) if elsewhere else None


def refuse_collisions(datasets: Sequence[DatasetSpec]) -> None:
    """Raise ConfigInvalid if two file names, or two URLs that differ only in their query, get the same task name."""
    known: dict[str, tuple[str, str]] = {}
    for path in (dataset.path for dataset in datasets if not dataset.task):
        name = stem(path)
        other, before = known.setdefault(task_name(name), (name, path))
        if other != name or (path != before and without_query(path) == without_query(before)):
            one, two = (other, name) if other != name else (blank_address(before), blank_address(path))
            raise ConfigInvalid(
                f"{one!r} and {two!r} would both be the task {task_name(name)}",
                hint="set the tasks (datasets.0.task=NAME), or rename a file; files with the same name are one task",
            )


def without_query(path: str) -> str:
    """A URL without query and fragment; a path unchanged."""
    return urlsplit(path)._replace(query="", fragment="").geturl() if is_web(path) or is_sql(path) else path


def stem(path: str) -> str:
    """A file's name without its suffixes, including that of its compression."""
    place = urlsplit(path).path if is_web(path) or is_sql(path) else path.rstrip("/")
    name = place.rpartition("/")[2] if is_address(path) else Path(place).name
    return re.sub(r"\.[^.]+$", "", re.sub(PACKED, "", name)) or "data"


def task_name(name: str) -> str:
    """A task name from a file name: lowercase letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^a-z0-9._-]", "-", name.lower()).lstrip("._-")[:63] or "data"


def downloads(store: Store) -> Path:
    """The directory for downloads: the command's, if it handed one on, else a new one."""
    return _handed_on[0].scratch if _handed_on else store.scratch("source")


def hand_on(store: Store, elsewhere: Elsewhere | None = None) -> None:
    """Keep what is found from now on for the run that follows in this process, until `let_go`."""
    let_go()
    _handed_on.append(HandedOn(store, store.scratch("source"), {}, elsewhere))


def let_go() -> None:
    """Remove downloads that no run has taken."""
    while _handed_on:
        _handed_on.pop().store.close()


def keep(found: Iterable[Source], run_id: str, store: Store) -> list[Source]:
    """Move downloads into the run's own directory, fsync them, and return the sources with the new paths."""
    place = store.layout.run(run_id).sources

    def move(ref: SourceRef) -> SourceRef:
        if not Path(ref.path).is_relative_to(store.layout.sessions):
            return ref
        if not (place / ref.digest).exists():  # the same URL may occur twice
            place.mkdir(parents=True, exist_ok=True)
            for file in ref.files:
                fsync(Path(ref.path, file.name))
            fsync(Path(ref.path))
            Path(ref.path).replace(place / ref.digest)
            fsync(place)
        return ref.model_copy(update={"path": str(place / ref.digest)})

    return [one.moved(move) for one in found]


def free(run_id: str, store: Store) -> None:
    """Remove the downloads of a finished run."""
    shutil.rmtree(store.layout.run(run_id).sources, ignore_errors=True)
