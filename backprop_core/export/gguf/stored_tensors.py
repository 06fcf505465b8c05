"""Reads rows of tensors from safetensors files. Maps only the requested rows into memory."""

import math
import mmap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backprop_core.errors import ModelLoadFailed
from backprop_core.models.base import unreadable
from backprop_core.models.safetensors_header import in_order, read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Stored(NamedTuple):
    """The location of a tensor in its file; `dtype` is its type's name in the file."""

    file: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    def rows(self, rows: slice) -> Tensor:
        """These rows (start and stop given) in the file's type, which must be in DTYPES. Raises ModelLoadFailed."""
        dtype, shape = DTYPES[self.dtype], (rows.stop - rows.start, *self.shape[1:])
        size, row = math.prod(shape) * dtype.itemsize, math.prod(shape[1:]) * dtype.itemsize
        page, begin = divmod(self.begin + rows.start * row, mmap.ALLOCATIONGRANULARITY)
        place = {"offset": page * mmap.ALLOCATIONGRANULARITY, "length": begin + size}
        with self.file.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), access=mmap.ACCESS_COPY, **place)
            except ValueError as error:
                raise cut_short(self.file) from error
        return torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=begin).view(dtype).view(shape)


def stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a file, by name. Raises ModelLoadFailed if it is truncated or not a safetensors file."""
    try:
        with path.open("rb") as file:
            header, start = read_header(file)
    except ValueError as error:
        raise unreadable(path, error) from error
    entries = in_order(header)
    if entries and path.stat().st_size < start + entries[-1][1]["data_offsets"][1]:
        raise cut_short(path)
    return {
        name: Stored(path, start + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries
    }


def cut_short(path: Path) -> ModelLoadFailed:
    return ModelLoadFailed(f"{path} is truncated", hint="download the model's files again")
