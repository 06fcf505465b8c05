"""Writes the job file of a line: whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backprop_core.errors import PlaceUnusable
from backprop_core.store.artifacts import write_atomic


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
