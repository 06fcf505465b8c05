"""LoRA layers with a hand-written gradient against PEFT's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backprop_core.models.adapter_tensors import config_of
from backprop_core.models.loading import LoadedBase, injected, linear_names, load
from backprop_core.schema.specs import LoraSpec, TrainSpec
from backprop_core.training.lora_layers import LoraLinear, faster, plain_layers
from tests.backprop_core import nano

IDS = torch.arange(60).reshape(3, 20) % 200


def spec_of(**lora: Any) -> TrainSpec:
    return TrainSpec(lora=LoraSpec(rank=4, alpha=8, **lora))


def loss_and_gradients(base: LoadedBase, model: Any) -> tuple[float, dict[str, Tensor]]:
    base.model.train()
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def filled(model: Any) -> None:
    """Give B, which starts at 0, some values."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", ["lora", "rslora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_loss_and_gradients_are_those_of_peft(
    tmp_path: Path, architecture: str, variant: str, checkpointing: bool
) -> None:
    """In every layer to 1e-5, with a bias too, and if activations are computed again."""
    base = load(nano.build(tmp_path / "base", architecture=architecture), precision="fp32", device="cpu")
    spec = spec_of(variant=variant)
    with injected(base, config_of(spec.lora, linear_names(base.model)), None) as model:
        filled(model)
        loss, expected = loss_and_gradients(base, model)
        base.keep_activations(not checkpointing)
        with faster(base, model, spec):
            assert len(plain_layers(base, model, spec)) == 14
            found, gradients = loss_and_gradients(base, model)
        assert found == pytest.approx(loss, rel=1e-6)
        assert gradients.keys() == expected.keys() and len(gradients) == 28
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-5 * expected[name].abs().max().item())
        assert not any("forward" in vars(layer) for layer in model.modules())


def test_without_its_adapter_it_is_the_base(base: LoadedBase) -> None:
    """Where PEFT switches adapters off, a layer gives what the base gives."""
    spec = spec_of()
    with torch.no_grad():
        bare = base.model(IDS).logits
    with injected(base, config_of(spec.lora, linear_names(base.model)), None) as model, torch.no_grad():
        filled(model)
        with faster(base, model, spec):
            assert not torch.equal(model(IDS).logits, bare)
            with model.disable_adapter():
                assert torch.equal(model(IDS).logits, bare)


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_other_precisions_stay_with_peft(path: Path, precision: Any) -> None:
    """A base that is not float32 is computed by PEFT."""
    base = load(path, precision=precision, device="cpu")
    with injected(base, config_of(spec_of().lora, linear_names(base.model)), None) as model:
        assert plain_layers(base, model, spec_of()) == []


@pytest.mark.parametrize("lora", [{"dropout": 0.1}, {"variant": "dora"}, {"variant": "pissa"}])
def test_other_variants_stay_with_peft(base: LoadedBase, lora: dict[str, Any]) -> None:
    """What is more than scale · B·A is computed by PEFT."""
    with injected(base, config_of(spec_of(**lora).lora, linear_names(base.model)), None) as model:
        assert plain_layers(base, model, spec_of(**lora)) == []


def test_the_gradient_is_the_derivative() -> None:
    """Finite differences in float64 agree, with and without a bias."""
    torch.manual_seed(0)
    x, W, A, B = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (4, 3), (2, 3), (4, 2)))
    for bias in (None, torch.randn(4, dtype=torch.float64)):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, A, B)]
        assert torch.autograd.gradcheck(lambda x, A, B, bias=bias: LoraLinear.apply(x, W, bias, A, B, 1.5), leaves)
