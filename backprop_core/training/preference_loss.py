"""The losses of preferences: DPO, KTO and ORPO."""

import torch
import torch.nn.functional as F
from torch import Tensor

# b = pairs, or rated answers
# A log-ratio is an answer's log-probability under the trained model minus that under the reference.


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
