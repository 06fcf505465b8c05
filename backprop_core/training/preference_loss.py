"""The losses of preferences: DPO, KTO and ORPO, and the log-probabilities that they compare."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backprop_core.data.batching import Item, collate
from backprop_core.models.loading import LoadedBase

LOGITS = 2**25  # float32 logits in memory at once: 128 MiB, and the same for their gradient

# b = answers, n = their label tokens, h = hidden size
# A log-ratio is an answer's log-probability under the trained model minus that under the reference.


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


def dpo(margin_b: Tensor, *, beta: float) -> Tensor:
    """(b,): -log σ(β · margin), the chosen answer's log-ratio minus the rejected one's. [arXiv 2305.18290, eq. 7]"""
    return -F.logsigmoid(beta * margin_b)


def kto(log_ratio_b: Tensor, good_b: Tensor, divergence: float, *, beta: float, good: float, bad: float) -> Tensor:
    """(b,): λ · (1 - σ(±β · (log-ratio - divergence))), + for good answers, - for bad ones. [arXiv 2402.01306, eq. 8]

    `good` and `bad` are their λ. `divergence` estimates KL(model ‖ reference), at least 0.
    """
    sign_b = torch.where(good_b, 1.0, -1.0)
    return torch.where(good_b, good, bad) * (1 - torch.sigmoid(sign_b * beta * (log_ratio_b - divergence)))


def odds_ratio(chosen_b: Tensor, rejected_b: Tensor) -> Tensor:
    """(b,): -log σ(log odds(chosen) - log odds(rejected)), of mean log-probabilities. [arXiv 2403.07691, eq. 7]"""
    return -F.logsigmoid(chosen_b - rejected_b - (log_not(chosen_b) - log_not(rejected_b)))


def log_not(log_b: Tensor) -> Tensor:
    """log(1 - p) of log p; finite where rounding makes p one."""
    return torch.log(-torch.expm1(log_b.clamp(max=-1e-6)))
