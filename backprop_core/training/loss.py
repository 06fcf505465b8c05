"""Chunked cross-entropy loss, which avoids keeping the logits of all label tokens in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backprop_core.models.loading import LoadedBase

LOGITS = 2**25  # float32 logits in memory at once: 128 MiB, and the same for their gradient

# n = label tokens, h = hidden size (or v where the head is not plain), v = vocabulary


def loss_sum(base: LoadedBase, states_nh: Tensor, labels_n: Tensor, *, logits: int = LOGITS) -> Tensor:
    """Sum of the label tokens' negative log-likelihoods, in nats.

    More than `logits` logits are computed in chunks, and again in the backward pass, which costs a third more time in
    the head. The gradient is the same up to rounding.
    """
    size = max(1, logits // base.vocabulary)
    if len(labels_n) <= size:
        return part(base, states_nh, labels_n)
    total = torch.zeros((), device=states_nh.device)
    for states, labels in zip(torch.split(states_nh, size), torch.split(labels_n, size), strict=True):
        total = total + checkpoint(part, base, states, labels, use_reentrant=False)
    return total


def part(base: LoadedBase, states_nh: Tensor, labels_n: Tensor) -> Tensor:
    return F.cross_entropy(base.logits(states_nh), labels_n, reduction="sum")
