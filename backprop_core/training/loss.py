"""Chunked cross-entropy loss, which never keeps the logits of all label tokens in memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backprop_core.models.loading import LoadedBase

LOGITS = 2**25  # logits in memory at once: 128 MiB in float32, and as much for their probabilities

# n = label tokens, h = hidden size (or v where the head is not plain), v = vocabulary


def loss_sum(base: LoadedBase, states_nh: Tensor, labels_n: Tensor, *, logits: int = LOGITS) -> Tensor:
    """Sum of the label tokens' negative log-likelihoods, in nats, from at most `logits` logits at once.

    A frozen head's gradient is computed with the loss, so that its logits are computed once. Those of another head are
    computed again in the backward pass if they need several chunks.
    """
    size = max(1, logits // base.vocabulary)
    if is_frozen(base):
        return FrozenHead.apply(states_nh, labels_n, base, size)  # type: ignore[no-any-return, no-untyped-call]
    if len(labels_n) <= size:
        return part(base, states_nh, labels_n)
    total = torch.zeros((), device=states_nh.device)
    for states, labels in zip(torch.split(states_nh, size), torch.split(labels_n, size), strict=True):
        total = total + checkpoint(part, base, states, labels, use_reentrant=False)
    return total


def is_frozen(base: LoadedBase) -> bool:
    """Whether logits are a linear layer of the states that is not trained, not even by an adapter."""
    return base.plain_head and type(base.model.lm_head) is torch.nn.Linear


def part(base: LoadedBase, states_nh: Tensor, labels_n: Tensor) -> Tensor:
    return F.cross_entropy(base.logits(states_nh), labels_n, reduction="sum")


class FrozenHead(torch.autograd.Function):
    """The loss of a frozen head W, and (softmax(logits) - one-hot(labels)) · W, its gradient, chunk by chunk.

    As in Liger's fused linear cross-entropy [arXiv 2410.10989].
    """

    @staticmethod
    def forward(ctx: Any, states_nh: Tensor, labels_n: Tensor, base: LoadedBase, size: int) -> Tensor:
        gradient_nh = torch.empty_like(states_nh) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=states_nh.device)
        for start in range(0, len(labels_n), size):
            chunk = slice(start, start + size)
            into_nh = None if gradient_nh is None else gradient_nh[chunk]
            total += loss_of_chunk(base, states_nh[chunk], labels_n[chunk], into_nh)
        ctx.save_for_backward(gradient_nh)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        [gradient_nh] = ctx.saved_tensors
        return gradient_nh * slopes[0], None, None, None


def loss_of_chunk(base: LoadedBase, states_nh: Tensor, labels_n: Tensor, gradient_nh: Tensor | None) -> Tensor:
    """The loss; writes its gradient into `gradient_nh`. No logits are left in memory."""
    loss, slope_nv = loss_and_slope(base.logits(states_nh), labels_n)
    if gradient_nh is not None:
        torch.mm(slope_nv.to(states_nh.dtype), base.model.lm_head.weight, out=gradient_nh)
    return loss


def loss_and_slope(logits_nv: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of -log softmax at the labels, and its derivative by the logits."""
    labels_n1 = labels_n[:, None]
    label_n1 = logits_nv.gather(1, labels_n1)
    largest_n1, at_n1 = logits_nv.max(1, keepdim=True)
    share_nv = torch.softmax(logits_nv, 1)
    log_sum_n1 = largest_n1 - share_nv.gather(1, at_n1).log()  # of the largest share, which cannot underflow
    share_nv.scatter_add_(1, labels_n1, torch.full_like(label_n1, -1))
    return (log_sum_n1 - label_n1).sum(), share_nv
