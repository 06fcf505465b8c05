"""Data-parallel training in several processes, one per GPU, with torch.distributed. Rank 0 is the leader."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backprop_core.errors import WorkerDied

FOREVER = timedelta(days=365)  # followers wait while the leader does other work; the parent detects hangs


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes. A single process is the leader and does not communicate."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """This process's part of a step's examples, dealt out by length for an even load."""
        return sorted(indices, key=lambda index: (-lengths[index], index))[self.rank :: self.size]

    def everyone(self, value: Any) -> list[Any]:
        """Gather a JSON value from all processes, by rank. Raises WorkerDied if one is gone."""
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with spoken():
            dist.all_gather(sizes, torch.tensor([len(own)]))
            longest = int(max(sizes))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, torch.nn.functional.pad(own, (0, longest - len(own))))
        return [json.loads(bytes(text[:size].tolist())) for text, size in zip(texts, sizes, strict=True)]

    def told(self, value: Any) -> Any:
        """Broadcast the leader's value to all processes. Raises WorkerDied if one is gone."""
        return self.everyone(value if self.leads else None)[0]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes. Raises WorkerDied if one is gone."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with spoken():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


ALONE = Ranks()


def join(size: int) -> Ranks:
    """Join the process group that torchrun has started."""
    if size == 1:
        return ALONE
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=FOREVER)
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def spoken() -> Iterator[None]:
    """Turn torch's error for an unresponsive process into WorkerDied."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerDied(f"another training process is gone: {error}", hint="run it again") from error
