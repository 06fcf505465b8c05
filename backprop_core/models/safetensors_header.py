"""Reads the header of a safetensors file: tensor names, types, shapes and offsets. No torch."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

LENGTH = 8  # bytes that hold the header's length
Header = dict[str, Any]


def read_header(file: BinaryIO) -> tuple[Header, int]:
    """The header, and the offset where data begins. Raises ValueError if it is not a safetensors file."""
    length = int.from_bytes(file.read(LENGTH), "little")
    if length > os.fstat(file.fileno()).st_size - LENGTH:
        raise ValueError("not a safetensors file, or truncated")
    return json.loads(file.read(length)), LENGTH + length


def in_order(header: Header) -> list[tuple[str, Any]]:
    """Tensors sorted by offset."""
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    return sorted(entries, key=lambda pair: pair[1]["data_offsets"])


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file. Raises ValueError if it is not a safetensors file."""
    with path.open("rb") as file:
        header, _ = read_header(file)
    return {name: tuple(entry["shape"]) for name, entry in in_order(header)}
