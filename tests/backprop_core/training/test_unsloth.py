"""The calls into Unsloth, against stand-ins made from its source: it needs a GPU, and none is here."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backprop_core.data.batching import collate
from backprop_core.data.batching import load as load_items
from backprop_core.errors import GPUFault, GPUOutOfMemory, ModelLoadFailed, VariantUnsupported
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.specs import LoraSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import lora_variants, unsloth
from backprop_core.worker.main import gpu_fault
from tests.backprop_core import nano
from tests.backprop_core.training.stand_in_unsloth import not_causal, through_causal_lm


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a module `unsloth` whose model is made by a function."""

    def install(made: Any) -> None:
        def from_pretrained(model_name: str, dtype: torch.dtype, **options: Any) -> Any:
            model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype)
            return made(model), AutoTokenizer.from_pretrained(model_name)

        module = SimpleNamespace(FastLanguageModel=SimpleNamespace(from_pretrained=from_pretrained))
        monkeypatch.setitem(sys.modules, "unsloth", module)

    return install


def test_states_come_through_the_causal_lm(path: Path, base: LoadedBase, store: Store, installed: Any) -> None:
    """Those of the same base with transformers alone; the inner model, called directly, would see the answers."""
    installed(through_causal_lm)
    loaded = unsloth.load(path, precision="fp32", max_length=128)
    batch = collate(load_items(base, nano.commit_rows(store, nano.chats(5)), max_length=128, store=store), base.device)
    asked = (batch.ids_bt, batch.lengths_b, batch.at_n)
    with torch.no_grad():
        expected, found = base.states(*asked), loaded.states(*asked)
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(LoadedBase.states(loaded, *asked), expected, atol=1e-2)
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("made", "said"), [(not_causal, "depends on later ones"), (lambda model: model, "does not return hidden states")]
)
def test_a_release_that_trains_otherwise_is_refused(path: Path, installed: Any, made: Any, said: str) -> None:
    """Whatever its version says: each base is tried out when it is loaded."""
    installed(made)
    with pytest.raises(ModelLoadFailed, match=said) as caught:
        unsloth.load(path, precision="fp32", max_length=128)
    assert caught.value.hint == "set training.backend=transformers"


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError, TypeError, ValueError, ImportError, KeyError])
def test_what_it_raises_has_a_code(path: Path, installed: Any, error: type[Exception]) -> None:
    """Its own words are in the message; no memory keeps its own code, and a fault of the GPU is none of these."""

    def fail(model: Any) -> Any:
        raise error("Unsloth: phi9 is not yet implemented!")

    installed(fail)
    with pytest.raises(ModelLoadFailed, match="phi9 is not yet implemented"):
        unsloth.load(path, precision="fp32", max_length=128)
    with pytest.raises(GPUOutOfMemory), unsloth.coded("load it"):
        raise torch.OutOfMemoryError
    with pytest.raises(ModelLoadFailed) as caught, unsloth.coded("load it"):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert isinstance(gpu_fault(caught.value), GPUFault)


def test_pissa_is_refused() -> None:
    """Its kernels raise if a layer has two adapters; the other variants have one."""
    with pytest.raises(VariantUnsupported, match="two adapters"):
        lora_variants.check(LoraSpec(variant="pissa"), precision="bf16", continues=False, backend="unsloth")
    lora_variants.check(LoraSpec(variant="dora"), precision="bf16", continues=False, backend="unsloth")
    lora_variants.check(LoraSpec(variant="pissa"), precision="bf16", continues=False, backend="transformers")
