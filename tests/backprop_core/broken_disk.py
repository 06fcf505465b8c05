"""A disk whose n-th operation fails: calls of the operating system are replaced, nothing of ours. Linux."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = [(io, "open"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir")]


class BrokenDisk:
    """Fails the n-th write, fsync, rename, open for writing or mkdir under a folder, with this errno."""

    def __init__(self, folder: Path, fail_at: int, code: int) -> None:
        self._folder, self._fail_at, self._code = str(folder), fail_at, code
        self.operations: list[str] = []

    @property
    def failed(self) -> bool:
        return len(self.operations) >= self._fail_at

    def holds(self, path: object) -> bool:
        return str(path).startswith(self._folder)

    def happens(self, what: str, path: object) -> None:
        """Count an operation; raise if its turn has come."""
        if self.holds(path):
            self.operations.append(f"{what} {Path(str(path)).name}")
            if len(self.operations) == self._fail_at:
                raise OSError(self._code, os.strerror(self._code), str(path))


class Writer(io.BufferedWriter):
    """A file on a broken disk; a write that fails has written half."""

    def __init__(self, raw: io.FileIO, disk: BrokenDisk) -> None:
        super().__init__(raw)
        self._disk = disk

    def write(self, data: Any) -> int:
        try:
            self._disk.happens("write", self.name)
        except OSError:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


@contextmanager
def broken(folder: Path, fail_at: int, code: int) -> Iterator[BrokenDisk]:
    """This process with a disk that fails once."""
    disk = BrokenDisk(folder, fail_at, code)
    kept = [(module, name, getattr(module, name)) for module, name in CALLS]
    replaced = [opening(disk, io.open), *(counting(disk, name, real) for _, name, real in kept[1:])]
    try:
        for (module, name), call in zip(CALLS, replaced, strict=True):
            setattr(module, name, call)
        yield disk
    finally:
        for module, name, real in kept:
            setattr(module, name, real)


def opening(disk: BrokenDisk, real: Callable[..., Any]) -> Callable[..., Any]:
    """`io.open` with files on the disk."""

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **others):
        if mode[0] not in "wxa" or not disk.holds(file):
            return real(file, mode, buffering, encoding, errors, newline, **others)
        disk.happens("open", file)
        writer = Writer(io.FileIO(file, mode[0]), disk)
        return writer if "b" in mode else io.TextIOWrapper(writer, encoding, errors, newline)

    return opened


def counting(disk: BrokenDisk, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """A call of `os` whose first argument is a path, or a descriptor for `fsync`."""

    def call(first: Any, *rest: Any, **others: Any) -> Any:
        if name != "mkdir" or not os.path.isdir(first):  # what is there already needs no disk
            disk.happens(name, os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first)
        return real(first, *rest, **others)

    return call
