"""The tensor data of a GGUF file: every slice of a tensor has its place, so threads read, fuse, encode and write."""

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
ONE_WRITES = threading.Lock()  # the kernel lets one thread write to a file, and others would wait for it busily
AHEAD = 64  # slices that wait for a thread or for those before them


@dataclass(frozen=True)
class Entry:
    """One tensor of the file. `offset` is added to it; heads of `head` rows have these paired, 0 for no heads."""

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
    """Where the next tensor may begin."""
    return size + -size % int(gguf.GGUF_DEFAULT_ALIGNMENT)


def write_tensors(file: Path, start: int, fused: Fused, entries: list[Entry], on_progress: OnProgress) -> None:
    """Write the tensors one after the other from `start` on, with as many threads as torch has here.

    `on_progress` gets the bytes of tensor data written and their sum, each hundredth of them. What is written is sent
    to the disk meanwhile, so that whoever waits for that at the end does not wait long.
    """
    done, due, total = 0, 0, sum(entry.bytes for entry in entries)
    os.truncate(file, start + sum(aligned(entry.bytes) for entry in entries))  # what is not written is zero
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
    """As many threads as torch has here; in each of them torch has one."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)  # the initializer's is also that of threads to come


def in_turn(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], int]]) -> Iterator[int]:
    """What each call returned, in the order of the calls."""
    pending: deque[Future[int]] = deque()
    for call in calls:
        pending.append(pool.submit(call))
        if len(pending) > AHEAD:
            yield pending.popleft().result()
    for future in pending:
        yield future.result()


def slices(file: Path, start: int, fused: Fused, entries: list[Entry]) -> Iterator[Callable[[], int]]:
    """Calls that each write some rows of a tensor and return how many bytes that was."""
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
        while written < data.nbytes:  # a full disk takes a part, then raises
            written += place.write(data.cast("B")[written:])
    return data.nbytes


def encoded(fused: Fused, entry: Entry, rows: slice) -> Array:
    """Rows of a tensor as the file has them, as bytes: (rows, bytes of a row).

    Raises GGUFExportFailed for NaN, infinity, or a value beyond the type's range.
    """
    block = fused.rows(entry.source, rows, DTYPES.get(entry.type, torch.float32))
    if not finite(block):
        wide = fused.rows(entry.source, rows, torch.float32)
        hint = "export bf16 instead" if finite(wide) else "the weights hold NaN or infinity: train again"
        raise GGUFExportFailed(f"{entry.source} has a value that {entry.type.name} cannot hold", hint=hint)
    if entry.offset:
        block = block + entry.offset
    array = encode(block, entry.type)
    return pair_rows(array, len(array) // entry.head) if entry.head else array


def encode(block: Tensor, kind: GGMLType) -> Array:
    """Rows of a tensor in the file's type, as bytes."""
    if kind == GGMLType.Q8_0:
        quantized: Array = gguf.quants.quantize(block.numpy(), kind)
        return quantized
    return block.view(torch.uint8).numpy().reshape(len(block), -1)


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: with one, its sum is none either, and its extremes show it.

    The sum takes half the time; that of finite values may overflow.
    """
    return math.isfinite(tensor.sum()) or all(math.isfinite(value) for value in torch.aminmax(tensor))


def pair_rows(tensor: T, heads: int) -> T:
    """Rows of each head from (first half, second half) to neighbours (first, second), (first, second), …

    transformers rotates row j of a head with row j + d/2, llama.cpp's `llama` row 2j with row 2j + 1.
    """
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
