"""The Unsloth backend: loads the base with Unsloth and patches PEFT models, in a worker used for nothing else.

Unsloth needs a GPU, so this is checked against its source alone: unsloth and unsloth_zoo 2026.10.9 in full where our
calls lead, and 2026.9.14, 2026.9.7 and 2026.9.1 for the causal mask.

- Its attention by xFormers, which it installs on Linux, is causal only with a mask that the forward of the causal LM
  makes. Called directly, the inner model of 2026.9.7 and older attends to later tokens, without a word; 2026.9.14 and
  newer make the mask there too. So older ones are refused before any work, the states are taken through the causal LM,
  as Unsloth's own preference and RL trainers take them, and each loaded base is tried out (`check_causal`).
- Its inner model cuts inputs at the `max_seq_length` of the load: our `max_length`, which no example exceeds.
- Its LoRA kernels apply one adapter at a time, so `lora_variants` refuses PiSSA. DoRA, and a float32 base, go through
  PEFT's own forward. A and B are float32, everything else is frozen. Dropout draws from torch's generators, which a
  checkpoint saves.
- A final norm that overwrites its incoming gradient (2026.10) does so for the head of the causal LM alone, not for us.
- It raises NotImplementedError, RuntimeError, TypeError, ValueError and ImportError: `coded`.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backprop_core.errors import GPUOutOfMemory, ModelLoadFailed
from backprop_core.models.loading import UNLOADABLE, LoadedBase
from backprop_core.schema.field_types import Precision

STATES = "UNSLOTH_RETURN_HIDDEN_STATES"  # while it is 1, a causal LM returns its last hidden states as logits
HINT = "set training.backend=transformers"
TRIED = 16  # tokens of the inputs that try out the causal mask

# b = rows, t = tokens, n = chosen positions, h = hidden size


class UnslothBase(LoadedBase):
    """A base whose hidden states come through the forward of the causal LM, which makes Unsloth's causal mask."""

    def states(self, ids_bt: Tensor, lengths_b: Tensor, at_n: Tensor) -> Tensor:
        if not self.plain_head:
            return super().states(ids_bt, lengths_b, at_n)
        with returning_states():
            states_bth: Tensor = self.model(input_ids=ids_bt, use_cache=False).logits
        return states_bth.flatten(0, 1).index_select(0, at_n)


@contextmanager
def returning_states() -> Iterator[None]:
    before = os.environ.get(STATES)
    os.environ[STATES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[STATES]
        else:
            os.environ[STATES] = before


def load(path: Path, *, precision: Precision, max_length: int) -> LoadedBase:
    """Load a base with Unsloth on the GPU, without its gradient checkpointing.

    Raises ModelLoadFailed, GPUOutOfMemory.
    """
    with coded(f"load {path}"):
        model, tokenizer = fast().from_pretrained(
            model_name=str(path),
            max_seq_length=max_length,
            dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
            load_in_4bit=precision == "nf4",
            use_gradient_checkpointing=False,
            use_exact_model_name=True,
            fix_tokenizer=False,
            trust_remote_code=False,
        )
        base = UnslothBase(model.eval().requires_grad_(False), tokenizer, precision, model.device)
        for training in (True, False):
            check_causal(base, training=training)
    return base


@torch.no_grad()
def check_causal(base: LoadedBase, *, training: bool) -> None:
    """Raise ModelLoadFailed if the states of a token depend on later ones, or are no hidden states."""
    ids_bt = torch.arange(TRIED, device=base.device).repeat(2, 1)
    ids_bt[1, TRIED // 2 :] += TRIED  # the first half is the same in both
    at_n = torch.arange(2 * TRIED, device=base.device)
    lengths_b = torch.full((2,), TRIED, device=base.device)
    base.model.train(training)
    states_bth = base.states(ids_bt, lengths_b, at_n).float().reshape(2, TRIED, -1)
    base.model.eval()
    if base.plain_head and states_bth.shape[-1] != base.model.config.get_text_config().hidden_size:
        raise ModelLoadFailed("this release of Unsloth does not return hidden states", hint=HINT)
    one, other = states_bth[:, : TRIED // 2]
    if not torch.allclose(one, other, rtol=0, atol=1e-3 * one.abs().max().item()):
        raise ModelLoadFailed("in this release of Unsloth a token depends on later ones", hint=HINT)


def speed_up(model: Any) -> None:
    """Patch a PEFT model with Unsloth's kernels. They stay in the base, which cannot be used for anything else.

    Raises ModelLoadFailed, GPUOutOfMemory.
    """
    with coded("patch the model"):
        fast().patch_peft_model(model, False)


@contextmanager
def coded(what: str) -> Iterator[None]:
    """Give what Unsloth raises a code. The worker recognizes a fault of the GPU by its cause."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GPUOutOfMemory(f"no memory left to {what}", hint="use a smaller base, bf16 or nf4") from error
    except UNLOADABLE as error:
        raise ModelLoadFailed(f"Unsloth cannot {what}: {error}", hint=HINT) from error


def fast() -> Any:
    return importlib.import_module("unsloth").FastLanguageModel
