"""LoRA layers of a float32 base with a hand-written gradient: the same sums as PEFT's, in fewer passes over memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backprop_core.models.loading import LoadedBase, peft_module
from backprop_core.schema.specs import TrainSpec

PLAIN = {"lora", "rslora"}  # variants whose update is scale · B·A and nothing else

# n = tokens, i = input features, o = output features, r = LoRA rank


@contextmanager
def faster(base: LoadedBase, model: Any, spec: TrainSpec) -> Iterator[None]:
    """Use `LoraLinear` in the plain LoRA layers of a PEFT model, for as long as the block runs."""
    layers = plain_layers(base, model, spec)
    for layer in layers:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def plain_layers(base: LoadedBase, model: Any, spec: TrainSpec) -> list[Any]:
    """The layers that `LoraLinear` can compute: float32 on both sides, one adapter, without dropout."""
    if base.precision != "fp32" or spec.lora.dropout or spec.lora.variant not in PLAIN or spec.backend == "unsloth":
        return []
    kind = peft_module().tuners.lora.Linear
    return [layer for layer in model.modules() if type(layer) is kind and type(layer.base_layer) is torch.nn.Linear]


def forward(layer: Any, x: Tensor) -> Tensor:
    """What PEFT's `Linear.forward` computes."""
    if layer.disable_adapters:
        return layer.base_layer(x)  # type: ignore[no-any-return]
    [name] = layer.active_adapters
    A_ri, B_or = layer.lora_A[name].weight, layer.lora_B[name].weight
    y_no = LoraLinear.apply(  # type: ignore[no-untyped-call]
        x.flatten(0, -2), layer.base_layer.weight, layer.base_layer.bias, A_ri, B_or, layer.scaling[name]
    )
    return y_no.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


class LoraLinear(torch.autograd.Function):
    """y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ with W and b frozen; products are added in place."""

    @staticmethod
    def forward(
        ctx: Any, x_ni: Tensor, W_oi: Tensor, b_o: Tensor | None, A_ri: Tensor, B_or: Tensor, scale: float
    ) -> Tensor:
        low_nr = x_ni @ A_ri.T
        ctx.save_for_backward(x_ni, W_oi, A_ri, B_or, low_nr)
        ctx.scale = scale
        return F.linear(x_ni, W_oi, b_o).addmm_(low_nr, B_or.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        [dy_no] = slopes
        x_ni, W_oi, A_ri, B_or, low_nr = ctx.saved_tensors
        dlow_nr = (dy_no @ B_or).mul_(ctx.scale)
        dx_ni = (dy_no @ W_oi).addmm_(dlow_nr, A_ri) if ctx.needs_input_grad[0] else None
        dB_or = (dy_no.T @ low_nr).mul_(ctx.scale)
        return dx_ni, None, None, dlow_nr.T @ x_ni, dB_or, None
