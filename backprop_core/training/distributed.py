"""Processes that train one run together, one a GPU: the first leads, the others follow."""

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

FOREVER = timedelta(days=365)  # followers wait while the leader does something else; the parent watches for a hang


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes. Alone it is the leader, and nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """This process's part of a step's examples, dealt out by length, so that all have as much to do."""
        return sorted(indices, key=lambda index: (-lengths[index], index))[self.rank :: self.size]

    def everyone(self, value: Any) -> list[Any]:
        """What each of them says, by rank: plain values, as JSON. Raises WorkerDied if one is gone."""
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
        """What the leader says, in all of them. Raises WorkerDied if one is gone."""
        return self.everyone(value if self.leads else None)[0]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all of them in the place of each tensor. Raises WorkerDied if one is gone."""
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
    """Find the other processes that torchrun has started with this one."""
    if size == 1:
        return ALONE
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=FOREVER)
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def spoken() -> Iterator[None]:
    """torch's error for a process that does not answer, coded."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerDied(f"a process that trains with this one is gone: {error}", hint="run it again") from error
