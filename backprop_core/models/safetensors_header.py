"""The head of a safetensors file: which tensors are in it, of what type and shape. No torch."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

LENGTH = 8  # bytes of the header's length
Header = dict[str, Any]


def read_header(file: BinaryIO) -> tuple[Header, int]:
    """The header of a safetensors file, and where its data begins. Raises ValueError for what is no such file."""
    length = int.from_bytes(file.read(LENGTH), "little")
    if length > os.fstat(file.fileno()).st_size - LENGTH:
        raise ValueError("it is no safetensors file, or only the start of one")
    return json.loads(file.read(length)), LENGTH + length


def in_order(header: Header) -> list[tuple[str, Any]]:
    """Tensors by where their bytes are."""
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    return sorted(entries, key=lambda pair: pair[1]["data_offsets"])


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a file. Raises ValueError for one that is no safetensors file."""
    with path.open("rb") as file:
        header, _ = read_header(file)
    return {name: tuple(entry["shape"]) for name, entry in in_order(header)}
