"""What a compressed file holds: gzip and Zstandard, known by their first bytes."""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from backprop_core.errors import InputValidationFailed

CHUNK = 1 << 20
GIB = 1 << 30
UNPACKED = 100  # times its size, at most: rows shrink to a tenth or a twentieth


class Packing(NamedTuple):
    """A way to compress: what it is called, how its files begin, and how they are opened."""

    name: str
    magic: bytes
    open: Callable[[BinaryIO], io.BufferedIOBase]


def gzipped(file: BinaryIO) -> io.BufferedIOBase:
    """A stream of what a gzip file holds."""
    return gzip.GzipFile(fileobj=file)


def zstd(file: BinaryIO) -> io.BufferedIOBase:
    """A stream of what Zstandard frames hold."""
    import pyarrow  # type: ignore[import-untyped]

    stream: io.BufferedIOBase = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return stream


PACKINGS = [
    Packing("gzip", b"\x1f\x8b", gzipped),
    Packing("zstd", b"\x28\xb5\x2f\xfd", zstd),
]


def packing_of(data: bytes) -> Packing | None:
    """How what begins so is compressed; None if it is not."""
    return next((known for known in PACKINGS if data.startswith(known.magic)), None)


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of what a file holds, unpacked; none of a damaged one. Raises OSError if it cannot be read."""
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
    """What a compressed file holds; other data as it is.

    Raises InputValidationFailed if it is damaged, or holds more than UNPACKED times its size and more than `least`.
    """
    packing = packing_of(data)
    return data if packing is None else within(max(UNPACKED * len(data), least), packing, data, name)


def within(limit: int, packing: Packing, data: bytes, name: str) -> bytes:
    """What is packed, read a MiB at a time until it is more than `limit`."""
    whole = bytearray()
    try:
        with packing.open(io.BytesIO(data)) as stream:
            while len(whole) <= limit and (chunk := stream.read(CHUNK)):
                whole += chunk
    except (OSError, EOFError, zlib.error) as error:
        hint = "make or copy the file again"
        raise InputValidationFailed(f"{name} is damaged {packing.name}: {error}", hint=hint) from error
    if len(whole) > limit:
        hint = "if you trust it, unpack it and name the file"
        raise InputValidationFailed(f"{name} unpacks to more than {UNPACKED} times its size", hint=hint)
    return bytes(whole)
