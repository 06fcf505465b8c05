"""Tensors of safetensors files, read some rows at a time. Nothing is mapped: only those rows are in memory."""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backprop_core.errors import ModelLoadFailed

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LENGTH = 8  # bytes of the header's length
Header = dict[str, Any]


class Stored(NamedTuple):
    """Where a tensor's bytes begin in its file; `dtype` is the file's word for its type."""

    file: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    def rows(self, rows: slice) -> Tensor:
        """These rows (begin and end given), in the file's type, which is one of DTYPES."""
        dtype, width = DTYPES[self.dtype], math.prod(self.shape[1:])
        size = width * dtype.itemsize
        count, begin = (rows.stop - rows.start) * size, self.begin + rows.start * size
        raw = np.fromfile(self.file, np.uint8, count, offset=begin)
        return torch.from_numpy(raw).view(dtype).view(-1, *self.shape[1:])


def stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a file, by name. Raises ModelLoadFailed for one that is cut short."""
    with path.open("rb") as file:
        header, start = read_header(file)
    entries = in_order(header)
    if entries and path.stat().st_size < start + entries[-1][1]["data_offsets"][1]:
        raise ModelLoadFailed(f"{path} is cut short", hint="get the model's files again")
    return {
        name: Stored(path, start + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries
    }


def read_header(file: BinaryIO) -> tuple[Header, int]:
    """The header of a safetensors file, and where its data begins."""
    length = int.from_bytes(file.read(LENGTH), "little")
    return json.loads(file.read(length)), LENGTH + length


def in_order(header: Header) -> list[tuple[str, Any]]:
    """Tensors by where their bytes are."""
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    return sorted(entries, key=lambda pair: pair[1]["data_offsets"])
