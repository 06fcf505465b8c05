"""Opens a file whose bytes must match a digest: they are hashed as they are read, in the same pass."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backprop_core.data.decompression import CHUNK
from backprop_core.data.sources import unreadable
from backprop_core.errors import BackpropError, InputNotFound, InputValidationFailed
from backprop_core.schema.field_types import is_address


class HashedFile(io.RawIOBase):
    """A file that hashes all bytes read from it. A failing disk is a coded error."""

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file, self._name, self._sha256 = file, name, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any buffer
        try:
            count = self._file.readinto(buffer) or 0
        except OSError as error:
            raise unreadable(self._name, error) from error
        self._sha256.update(buffer[:count])
        return count

    def digest(self) -> str:
        """The sha256 of the whole file: reads what is left."""
        buffer = memoryview(bytearray(CHUNK))
        while self.readinto(buffer):
            pass
        return self._sha256.hexdigest()


@contextmanager
def verified(path: Path, digest: str, name: str) -> Iterator[io.BufferedReader]:
    """Open a file to be read once from its start; at the end of the block its sha256 must be `digest`.

    What the block has read is only known to be the file when the block has ended. If the block raises a coded error and
    the file has changed, the change is raised instead. Raises InputNotFound if it is gone; InputValidationFailed if it
    has changed or cannot be read.
    """
    try:
        file = io.FileIO(path)
    except FileNotFoundError as error:
        hint = "start a new run" if is_address(name) else "restore it: it existed when the run started"
        raise InputNotFound(f"{name} is gone", hint=hint) from error
    except OSError as error:
        raise unreadable(name, error) from error
    with file:
        hashed = HashedFile(file, name)
        try:
            yield io.BufferedReader(hashed, CHUNK)
        except BackpropError as error:
            if hashed.digest() != digest:
                raise changed(name) from error
            raise
        if hashed.digest() != digest:
            raise changed(name)


def changed(name: str) -> InputValidationFailed:
    return InputValidationFailed(f"{name} has changed since the run started", hint="start a new run with the new file")
