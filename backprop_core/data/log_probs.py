"""The log-probabilities of answers, with gradients if they are trained."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backprop_core.data.batching import Item, collate
from backprop_core.models.loading import LoadedBase

LOGITS = 2**25  # float32 logits in memory at once: 128 MiB, and the same for their gradient

# b = answers, n = their label tokens, h = hidden size


def log_probs(base: LoadedBase, items: Sequence[Item], *, logits: int = LOGITS) -> Tensor:
    """(b,): the sum of the log-probabilities of each answer's tokens.

    More than `logits` logits are computed in chunks, and again in the backward pass.
    """
    batch = collate(items, base.device)
    states_nh = base.states(batch.ids_bt, batch.lengths_b, batch.at_n)
    size = max(1, logits // base.vocabulary)
    chunks = zip(torch.split(states_nh, size), torch.split(batch.labels_n, size), strict=True)
    if len(batch.labels_n) <= size:
        token_n = log_probs_of(base, states_nh, batch.labels_n)
    else:
        token_n = torch.cat([checkpoint(log_probs_of, base, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.stack([part.sum() for part in torch.split(token_n, [len(item.at_n) for item in items])])


def log_probs_of(base: LoadedBase, states_nh: Tensor, labels_n: Tensor) -> Tensor:
    """(n,): the log-probability of each label token."""
    return -F.cross_entropy(base.logits(states_nh), labels_n, reduction="none")
