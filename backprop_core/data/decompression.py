"""Decompresses gzip and Zstandard files, detected by their first bytes, with a limit against zip bombs."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backprop_core.errors import InputValidationFailed

CHUNK = 1 << 20
GIB = 1 << 30
UNPACKED = 100  # maximum ratio: row files typically shrink to a tenth or a twentieth


class Packing(NamedTuple):
    """A compression format: name, magic bytes, and opener."""

    name: str
    magic: bytes
    open: Callable[[BinaryIO], io.BufferedIOBase]


def gzipped(file: BinaryIO) -> io.BufferedIOBase:
    """Open a gzip stream."""
    return gzip.GzipFile(fileobj=file)


def zstd(file: BinaryIO) -> io.BufferedIOBase:
    """Open a Zstandard stream."""
    import pyarrow  # type: ignore[import-untyped]

    stream: io.BufferedIOBase = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return stream


PACKINGS = [
    Packing("gzip", b"\x1f\x8b", gzipped),
    Packing("zstd", b"\x28\xb5\x2f\xfd", zstd),
]


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
        except (OSError, EOFError, zlib.error):
            return b""


def unpacked(data: bytes, name: str, *, least: int = GIB) -> bytes:
    """Decompress data; uncompressed data is returned unchanged.

    Raises InputValidationFailed if it is damaged, or larger than both UNPACKED times its size and `least` bytes.
    """
    packing = packing_of(data)
    return data if packing is None else within(max(UNPACKED * len(data), least), packing, data, name)


def within(limit: int, packing: Packing, data: bytes, name: str) -> bytes:
    """Decompress in chunks of 1 MiB, up to `limit` bytes."""
    whole = bytearray()
    try:
        with packing.open(io.BytesIO(data)) as stream:
            while len(whole) <= limit and (chunk := stream.read(CHUNK)):
                whole += chunk
    except (OSError, EOFError, zlib.error) as error:
        hint = "create or copy the file again"
        raise InputValidationFailed(f"{name} is a damaged {packing.name} file: {error}", hint=hint) from error
    if len(whole) > limit:
        hint = "if you trust it, decompress it yourself and use that file"
        raise InputValidationFailed(f"{name} decompresses to more than {UNPACKED} times its size", hint=hint)
    return bytes(whole)
