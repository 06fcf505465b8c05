"""Stand-ins for a model that Unsloth has loaded, with what its source shows of the forward pass.

The causal LM makes the causal mask and returns its last hidden states as logits if the environment says so; the inner
model alone, as in 2026.9.7 and older, attends to every token.
"""

import os
from types import MethodType
from typing import Any

import torch


def through_causal_lm(model: Any) -> Any:
    """A model whose inner model is causal only within the forward of the causal LM."""
    inner, whole = model.model.forward, model.forward
    causal: list[bool] = []

    def inner_forward(_self: Any, **arguments: Any) -> Any:
        return inner(**arguments) if causal else inner(**arguments, attention_mask=everything(arguments["input_ids"]))

    def forward(_self: Any, **arguments: Any) -> Any:
        causal.append(True)
        try:
            if os.environ.get("UNSLOTH_RETURN_HIDDEN_STATES") != "1":
                return whole(**arguments)
            return Output(model.model(**arguments).last_hidden_state)
        finally:
            causal.pop()

    model.model.forward = MethodType(inner_forward, model.model)
    model.forward = MethodType(forward, model)
    return model


def not_causal(model: Any) -> Any:
    """A model whose causal LM attends to every token too."""
    through_causal_lm(model)
    inner = model.model.forward

    def forward(_self: Any, input_ids: torch.Tensor, **arguments: Any) -> Any:
        return Output(inner(input_ids=input_ids, **arguments).last_hidden_state)

    model.forward = MethodType(forward, model)
    return model


class Output:
    """What a causal LM returns."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def everything(ids_bt: torch.Tensor) -> torch.Tensor:
    """A mask that hides nothing, (b, 1, t, t)."""
    rows, tokens = ids_bt.shape
    return torch.zeros(rows, 1, tokens, tokens)
