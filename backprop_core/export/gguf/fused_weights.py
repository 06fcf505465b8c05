"""Fuses a LoRA, rsLoRA or DoRA adapter into the base's weights, one tensor and some rows at a time."""

import math
import threading
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backprop_core.errors import AdapterMismatch
from backprop_core.export.gguf.stored_tensors import DTYPES, Stored, stored_in
from backprop_core.models.adapter_tensors import Tensors, read_adapter
from backprop_core.models.base import weights
from backprop_core.models.peft_files import FILE_PREFIX, HINT, check_fusable

BLOCK = 2**21  # entries to encode and write at once
PART = 2**19  # entries to fuse at once: fits into the CPU cache
PARTS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "m"}


class Update(NamedTuple):
    """An adapter's update of a matrix W (o, i): A is (r, i), B is (o, r), and DoRA's magnitudes m are (o,)."""

    A: Tensor
    B: Tensor
    m: Tensor | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the update fits a W of this shape."""
        outer = (self.B.shape[0], self.A.shape[1])
        return outer == shape and self.A.shape[0] == self.B.shape[1] and (self.m is None or self.m.shape == shape[:1])

    def split(self, rows: slice, step: int) -> Iterator["Update"]:
        """The update of these rows of W, in parts of `step` rows."""
        m_parts = repeat(None) if self.m is None else torch.split(self.m[rows], step)
        return (Update(self.A, B, m) for B, m in zip(torch.split(self.B[rows], step), m_parts, strict=False))


class Scratch(threading.local):
    """Reused buffers per thread: allocating fresh pages for each slice would cost as much as computing it."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def empty(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor, valid until this thread calls this for the same `use` again."""
        size = math.prod(shape) * dtype.itemsize
        if use not in self.held or self.held[use].nbytes < size:
            self.held[use] = torch.empty(size, dtype=torch.uint8)
        return self.held[use][:size].view(dtype).view(shape)


class Fused:
    """The tensors of `base` with `adapter` fused in: W + s·B·A; unchanged tensors as they are.

    s is alpha/r, or alpha/√r for rsLoRA; DoRA scales each row of the sum to the norm m. [arXiv 2106.09685, 2312.03732,
    2402.09353] Raises AdapterMismatch for other kinds of adapters or layers.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.stored: dict[str, Stored] = {}
        for path in weights(base):
            self.stored |= stored_in(path)
        self.scratch = Scratch()
        self.scaling, self.lora = read_updates(adapter) if adapter else (0.0, {})
        for name, update in self.lora.items():
            self._check(name, update)

    def _check(self, name: str, update: Update) -> None:
        if name not in self.stored:
            raise AdapterMismatch(f"the adapter changes {name}, which the base does not have", hint=HINT)
        stored = self.stored[name]
        if not update.fits(stored.shape):
            shapes = f"{tuple(update.B.shape)}·{tuple(update.A.shape)}"
            raise AdapterMismatch(
                f"the adapter's {shapes} does not fit {name} {stored.shape}",
                hint="use the base that the adapter was trained on",
            )
        if stored.dtype not in DTYPES:
            raise AdapterMismatch(
                f"{name} is stored as {stored.dtype}; cannot fuse an adapter into it",
                hint="use the full-precision model as the base",
            )

    def refuse_head(self) -> None:
        """Raise AdapterMismatch if only one of two tied matrices is changed."""
        if "lm_head.weight" in self.lora:
            raise AdapterMismatch("the adapter changes lm_head, which is tied to the embeddings", hint=HINT)

    def refuse_magnitudes(self) -> None:
        """Raise AdapterMismatch for DoRA."""
        if any(update.m is not None for update in self.lora.values()):
            raise AdapterMismatch(
                "llama.cpp does not support DoRA adapters", hint="export a fused model with --format gguf"
            )

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self.stored)

    def slices(self, name: str, *, of: int = 1) -> Iterator[slice]:
        """Slices of a tensor's rows with about BLOCK entries each, in multiples of `of` rows."""
        count, *others = self.stored[name].shape
        step = max(1, BLOCK // (math.prod(others) * of)) * of
        return (slice(begin, min(begin + step, count)) for begin in range(0, count, step))

    def rows(self, name: str, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some rows of a tensor, fused in float32 and rounded to `dtype`; valid until this thread's next call."""
        W, update = self.stored[name].rows(rows), self.lora.get(name)
        if W.dtype == dtype and not update:
            return W
        rounded, step = self.scratch.empty("rounded", tuple(W.shape), dtype), max(1, PART // math.prod(W.shape[1:]))
        wide = self.scratch.empty("wide", (min(step, len(W)), *W.shape[1:]), torch.float32)
        updates = update.split(rows, step) if update else repeat(None)
        for W_oi, out_oi, part in zip(torch.split(W, step), torch.split(rounded, step), updates, strict=False):
            wide_oi = wide[: len(W_oi)].copy_(W_oi)
            out_oi.copy_(self.moved(wide_oi, part) if part else wide_oi)
        return rounded

    def moved(self, W_oi: Tensor, update: Update) -> Tensor:
        """W with the update, in float32, rounded like PEFT; may overwrite W."""
        product = self.scratch.empty("product", tuple(W_oi.shape), torch.float32)
        W_oi += torch.mm(update.B, update.A, out=product).mul_(self.scaling)
        return W_oi if update.m is None else (update.m / W_oi.norm(dim=1))[:, None] * W_oi

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in float32."""
        return torch.cat([self.rows(name, rows, torch.float32).clone() for rows in self.slices(name)])


def read_updates(directory: Path) -> tuple[float, dict[str, Update]]:
    """The scale s, and the update of each changed tensor of the base, by name."""
    adapter = read_adapter(directory)
    config = adapter.config
    check_fusable(config)
    updates = updates_of(adapter.tensors, {"A", "B", "m"} if config.get("use_dora") else {"A", "B"})
    rank, alpha = config["r"], config["lora_alpha"]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), updates


def updates_of(tensors: Tensors, parts: set[str]) -> dict[str, Update]:
    """The updates by name of the base's tensor. Raises AdapterMismatch unless all have exactly these parts."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = split(key.removeprefix(FILE_PREFIX))
        found.setdefault(f"{module}.weight", {})[part] = tensor
    if odd := [name for name, its in found.items() if its.keys() != parts]:
        has = " and ".join(found[odd[0]])
        raise AdapterMismatch(f"the adapter has {has} for {odd[0]}, not {' and '.join(sorted(parts))}", hint=HINT)
    return {name: Update(**{part: its[part].float() for part in its}) for name, its in found.items()}


def split(key: str) -> tuple[str, str]:
    """Split a tensor's key in an adapter into the layer and the part of an Update."""
    for end, part in PARTS.items():
        if key.endswith(f".{end}"):
            return key.removesuffix(f".{end}"), part
    raise AdapterMismatch(f"the adapter's {key} is not a LoRA matrix of a linear layer", hint=HINT)
