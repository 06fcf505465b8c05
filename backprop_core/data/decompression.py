"""Decompresses gzip, Zstandard, bzip2 and xz as streams, detected by first bytes, with a limit against zip bombs."""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backprop_core.errors import InputValidationFailed

CHUNK = 1 << 20
GIB = 1 << 30
UNPACKED = 100  # maximum ratio: row files typically shrink to a tenth or a twentieth
IN_MEMORY = 1 << 24  # bytes of a file with random access; a larger one is copied to a temporary file
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


class Packing(NamedTuple):
    """A compression format: name, magic bytes, and opener."""

    name: str
    magic: bytes
    open: Callable[[BinaryIO], io.BufferedIOBase]


def zstd(file: BinaryIO) -> io.BufferedIOBase:
    """Open a Zstandard stream."""
    import pyarrow  # type: ignore[import-untyped]

    stream: io.BufferedIOBase = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return stream


PACKINGS = [
    Packing("gzip", b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    Packing("zstd", b"\x28\xb5\x2f\xfd", zstd),
    Packing("bzip2", b"BZh", bz2.BZ2File),
    Packing("xz", b"\xfd7zXZ\0", lzma.LZMAFile),
]


class Damaged(Exception):
    """A packed file cannot be unpacked further. The message says which kind it is, and why."""


class Budget:
    """How many bytes a file may unpack to, with all files packed in it: UNPACKED times its size, but at least `least`.

    `size` is in bytes. `name` is the file's name in errors.
    """

    def __init__(self, size: int, name: str, *, least: int = GIB) -> None:
        self._left, self._name = max(UNPACKED * size, least), name

    def take(self, count: int) -> None:
        """Count bytes that were unpacked. Raises InputValidationFailed if they are too many."""
        self._left -= count
        if self._left < 0:
            hint = "if you trust it, decompress it yourself and use that file"
            raise InputValidationFailed(f"{self._name} decompresses to more than {UNPACKED} times its size", hint=hint)


class Unpacked(io.RawIOBase):
    """The bytes of a packed stream. Raises Damaged, and InputValidationFailed for more bytes than the budget has."""

    def __init__(
        self, packed: io.BufferedIOBase, kind: str, damaged: tuple[type[Exception], ...], budget: Budget
    ) -> None:
        self._packed, self._kind, self._damaged, self._budget = packed, kind, damaged, budget
        self._broken: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any buffer
        """Fill the buffer, unless the stream ends; what comes before damage is still read."""
        filled = 0
        while filled < len(buffer) and (data := self._part(len(buffer) - filled)):
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        if self._broken and not filled:
            raise Damaged(f"damaged {self._kind} file: {self._broken}") from self._broken
        self._budget.take(filled)
        return filled

    def _part(self, count: int) -> bytes:
        """At most `count` bytes; none at the end, and from where the stream is damaged."""
        try:
            return b"" if self._broken else self._packed.read1(count)
        except self._damaged as error:
            self._broken = error
            return b""


def packing_of(data: bytes) -> Packing | None:
    """The compression format of data with these first bytes; None if uncompressed."""
    return next((known for known in PACKINGS if data.startswith(known.magic)), None)


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, decompressed; empty if it is damaged. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(count)
        packing = packing_of(head)
        if packing is None:
            return head
        file.seek(0)
        try:
            with packing.open(file) as stream:
                return stream.read(count)
        except DAMAGED:
            return b""


def unpacked(stream: io.BufferedReader, budget: Budget) -> io.BufferedReader:
    """The decompressed stream; an uncompressed one is returned unchanged.

    Reading it raises Damaged, and InputValidationFailed if it is larger than the budget.
    """
    packing = packing_of(stream.peek(1))
    if packing is None:
        return stream
    return io.BufferedReader(Unpacked(packing.open(stream), packing.name, DAMAGED, budget), CHUNK)


@contextmanager
def seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """A private copy of a stream for random access: in memory if small, else in a temporary file."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as copy:
        shutil.copyfileobj(stream, copy, CHUNK)
        copy.seek(0)
        yield copy  # type: ignore[misc]  # a binary file in all but its base class
