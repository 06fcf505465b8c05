"""Tensors of safetensors files, read some rows at a time. Nothing is mapped: only those rows are in memory."""

import math
import threading
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backprop_core.base import unreadable
from backprop_core.errors import ModelLoadFailed
from backprop_core.headers import in_order, read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Scratch(threading.local):
    """Memory that a thread takes again and again: fresh pages for each slice would cost as much as the work on it."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def empty(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with anything in it, until this thread asks for the same use again."""
        size = math.prod(shape) * dtype.itemsize
        if use not in self.held or self.held[use].nbytes < size:
            self.held[use] = torch.empty(size, dtype=torch.uint8)
        return self.held[use][:size].view(dtype).view(shape)


class Stored(NamedTuple):
    """Where a tensor's bytes begin in its file; `dtype` is the file's word for its type."""

    file: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    def rows(self, rows: slice, scratch: Scratch) -> Tensor:
        """These rows (begin and end given), in the file's type, which is one of DTYPES. Raises ModelLoadFailed."""
        dtype = DTYPES[self.dtype]
        block = scratch.empty("stored", (rows.stop - rows.start, *self.shape[1:]), dtype)
        with self.file.open("rb") as file:
            file.seek(self.begin + rows.start * math.prod(self.shape[1:]) * dtype.itemsize)
            if file.readinto(block.view(torch.uint8).numpy().data) < block.nbytes:
                raise cut_short(self.file)
        return block


def stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a file, by name. Raises ModelLoadFailed for one that is cut short, or no safetensors file."""
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
    return ModelLoadFailed(f"{path} is cut short", hint="get the model's files again")
