"""Writes the job file of a line: whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backprop_core.errors import PlaceUnusable
from backprop_core.store.artifacts import fsync, write_atomic


def create(path: Path, text: str) -> None:
    """Write a new job file. Raises FileExistsError."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_atomic(beside, text)
    try:
        os.link(beside, path)  # fails if it exists: exclusive, and never partial
    finally:
        beside.unlink()
    fsync(path.parent)


def replace(path: Path, text: str) -> None:
    """Write a job file over the one that is there; a link stays one. Raises PlaceUnusable."""
    with writable(path):
        write_atomic(path.resolve(), text)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raise PlaceUnusable for errors of the file system in the block."""
    try:
        yield
    except OSError as error:
        raise PlaceUnusable(
            f"{path} cannot be written: {error.strerror}", hint="check its permissions and the free space"
        ) from error
