"""Writes the tensor data of a GGUF file: threads read, fuse, encode and write slices of tensors in parallel."""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as GGMLType
from torch import Tensor

from backprop_core.errors import GGUFExportFailed
from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.runtime.progress import OnProgress
from backprop_core.store.artifacts import fsync

DTYPES = {GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}
Array = npt.NDArray[Any]
T = TypeVar("T", Tensor, Array)
ONE_WRITES = threading.Lock()  # the kernel serializes writes to a file, and waiting threads would spin
AHEAD = 64  # maximum number of pending slices


@dataclass(frozen=True)
class Entry:
    """One tensor of the file. `offset` is added to its values; `head` is the rows per head to pair, 0 for none."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: float
    head: int

    @property
    def bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // int(block) * int(size)


def aligned(size: int) -> int:
    """Round up to the alignment of tensors."""
    return size + -size % int(gguf.GGUF_DEFAULT_ALIGNMENT)


def write_tensors(file: Path, start: int, fused: Fused, entries: list[Entry], on_progress: OnProgress) -> None:
    """Write all tensors from offset `start` on, with torch's number of threads.

    `on_progress` gets (written, total) bytes of tensor data, at each percent. Written data is flushed to disk in the
    background, so that the final fsync is short.
    """
    done, due, total = 0, 0, sum(entry.bytes for entry in entries)
    os.truncate(file, start + sum(aligned(entry.bytes) for entry in entries))  # gaps are zero
    with ThreadPoolExecutor(1) as disk, threads() as pool:
        flushed = disk.submit(fsync, file)
        for written in in_turn(pool, slices(file, start, fused, entries)):
            done += written
            if due <= done < total:
                on_progress(done, total)
                due = done + total // 100
                if flushed.done():
                    flushed.result()
                    flushed = disk.submit(fsync, file)
    on_progress(total, total)


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A pool with torch's number of threads; within each thread, torch uses one thread."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)  # the initializer's setting also applies to later threads


def in_turn(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], int]]) -> Iterator[int]:
    """Run calls in the pool; yields their results in order."""
    pending: deque[Future[int]] = deque()
    for call in calls:
        pending.append(pool.submit(call))
        if len(pending) > AHEAD:
            yield pending.popleft().result()
    for future in pending:
        yield future.result()


def slices(file: Path, start: int, fused: Fused, entries: list[Entry]) -> Iterator[Callable[[], int]]:
    """Calls that each write some rows of a tensor and return the number of bytes."""
    for entry in entries:
        row = entry.bytes // entry.shape[0]
        for rows in fused.slices(entry.source, of=entry.head or 1):
            yield partial(write_rows, file, start + rows.start * row, fused, entry, rows)
        start += aligned(entry.bytes)


def write_rows(file: Path, offset: int, fused: Fused, entry: Entry, rows: slice) -> int:
    """Write some rows of a tensor at this offset of the file."""
    data = encoded(fused, entry, rows).data
    with ONE_WRITES, file.open("r+b", buffering=0) as place:
        place.seek(offset)
        written = 0
        while written < data.nbytes:  # on a full disk, the first write is partial and the next raises
            written += place.write(data.cast("B")[written:])
    return data.nbytes


def encoded(fused: Fused, entry: Entry, rows: slice) -> Array:
    """Rows of a tensor, encoded in the file's type, as bytes: (rows, bytes per row).

    Raises GGUFExportFailed for NaN, infinity, or a value beyond the type's range.
    """
    block = fused.rows(entry.source, rows, DTYPES.get(entry.type, torch.float32))
    if not finite(block):
        wide = fused.rows(entry.source, rows, torch.float32)
        hint = "export bf16 instead" if finite(wide) else "the weights contain NaN or infinity: train again"
        raise GGUFExportFailed(f"{entry.source} has a value that {entry.type.name} cannot represent", hint=hint)
    if entry.offset:
        block = block + entry.offset
    array = encode(block, entry.type)
    return pair_rows(array, len(array) // entry.head) if entry.head else array


def encode(block: Tensor, kind: GGMLType) -> Array:
    """Encode rows of a tensor in the file's type, as bytes."""
    if kind == GGMLType.Q8_0:
        quantized: Array = gguf.quants.quantize(block.numpy(), kind)
        return quantized
    return block.view(torch.uint8).numpy().reshape(len(block), -1)


def finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity.

    Checks the sum first, which is twice as fast; the sum of finite values may overflow, so then checks the extremes.
    """
    return math.isfinite(tensor.sum()) or all(math.isfinite(value) for value in torch.aminmax(tensor))


def pair_rows(tensor: T, heads: int) -> T:
    """Reorder the rows of each head from (first half, second half) to pairs (first, second), (first, second), …

    transformers rotates row j of a head with row j + d/2, llama.cpp's `llama` row 2j with row 2j + 1.
    """
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
