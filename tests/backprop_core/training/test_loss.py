"""The chunked loss against plain cross-entropy."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from backprop_core.models.adapter_tensors import config_of
from backprop_core.models.loading import LoadedBase, injected, load
from backprop_core.schema.specs import LoraSpec
from backprop_core.training.loss import loss_sum
from tests.backprop_core import nano

COUNT = 40  # label tokens


def inputs(base: LoadedBase) -> tuple[Tensor, Tensor]:
    """States as large as a model's, and labels; some labels are all but impossible."""
    torch.manual_seed(3)
    width = base.model.config.hidden_size if base.plain_head else base.vocabulary
    return 30 * torch.randn(COUNT, width), torch.randint(base.vocabulary, (COUNT,))


def found(base: LoadedBase, states_nh: Tensor, labels_n: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of half of it."""
    leaf = states_nh.clone().requires_grad_()
    loss = loss_sum(base, leaf, labels_n, **options)
    (loss / 2).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("chunk", [None, COUNT, 7, 1])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_it_is_the_cross_entropy(tmp_path: Path, architecture: str, chunk: int | None) -> None:
    """However many label tokens are in a chunk, loss and gradient are those of float64 to 1e-5."""
    base = load(nano.build(tmp_path / "base", architecture=architecture), precision="fp32", device="cpu")
    states_nh, labels_n = inputs(base)
    options = {"logits": chunk * base.vocabulary} if chunk else {}
    loss, gradient_nh = found(base, states_nh, labels_n, **options)
    exact_nh = states_nh.double().requires_grad_()
    logits_nv = exact_nh @ base.model.lm_head.weight.double().T if base.plain_head else exact_nh
    exact = F.cross_entropy(logits_nv, labels_n, reduction="sum")
    (exact / 2).backward()  # type: ignore[no-untyped-call]
    assert exact_nh.grad is not None
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.allclose(gradient_nh.double(), exact_nh.grad, rtol=1e-5, atol=1e-5 * exact_nh.grad.abs().max().item())


def test_a_label_of_no_probability_has_a_finite_loss(base: LoadedBase) -> None:
    """Where softmax gives a label 0, its loss is the distance of its logit to the largest one."""
    states_nh, _ = inputs(base)
    states_nh *= 1000
    labels_n = base.logits(states_nh).argmin(1)
    loss, gradient_nh = found(base, states_nh, labels_n)
    logits_nv = base.logits(states_nh)
    assert loss.item() == pytest.approx((logits_nv.amax(1) - logits_nv.amin(1)).sum().item(), rel=1e-5)
    assert gradient_nh.isfinite().all()


def test_a_logit_that_is_not_finite_shows(base: LoadedBase) -> None:
    """An overflow in the model is no number in the loss, so that the run stops."""
    states_nh, labels_n = inputs(base)
    states_nh[3] = float("inf")
    assert not found(base, states_nh, labels_n)[0].isfinite()


def test_bf16_is_as_close_as_plain_cross_entropy_in_bf16(path: Path) -> None:
    """In bf16 the gradient is within two roundings of the plain one's."""
    base = load(path, precision="bf16", device="cpu")
    states_nh, labels_n = inputs(base)
    states_nh = states_nh.bfloat16() / 30
    loss, gradient_nh = found(base, states_nh, labels_n, logits=7 * base.vocabulary)
    leaf = states_nh.clone().requires_grad_()
    plain = F.cross_entropy(base.logits(leaf), labels_n, reduction="sum")
    (plain / 2).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and gradient_nh.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert torch.allclose(gradient_nh, leaf.grad, rtol=2**-6, atol=2**-7 * leaf.grad.abs().max().item())


def test_an_adapter_of_the_head_is_trained(tmp_path: Path) -> None:
    """The gradient of an adapter on the head is plain cross-entropy's, in one chunk and in many."""
    base = load(nano.build(tmp_path / "base", tie_word_embeddings=False), precision="fp32", device="cpu")
    states_nh, labels_n = inputs(base)
    lora = LoraSpec(rank=4, alpha=8, target_modules=["lm_head"])
    with injected(base, config_of(lora, ["lm_head"]), None) as model:
        layer = model.base_model.model.lm_head
        torch.nn.init.normal_(layer.lora_B.default.weight, std=0.1)
        trained = [layer.lora_A.default.weight, layer.lora_B.default.weight]

        def gradients(loss: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad(loss, trained))

        plain = gradients(F.cross_entropy(base.logits(states_nh), labels_n, reduction="sum"))
        for logits in (2**25, 7 * base.vocabulary):
            for one, other in zip(gradients(loss_sum(base, states_nh, labels_n, logits=logits)), plain, strict=True):
                assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


class Largest(TorchDispatchMode):
    """The most bytes that tensors made inside have held together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {place(tensor) for tensor in [*args, *(kwargs or {}).values()] if isinstance(tensor, Tensor)}
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and place(tensor) not in given:
                self.add(tensor)
        return made

    def add(self, tensor: Tensor) -> None:
        self.now += tensor.nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self.remove, tensor.nbytes)

    def remove(self, size: int) -> None:
        self.now -= size


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_no_more_than_one_chunk_is_in_memory(base: LoadedBase) -> None:
    """The peak is the logits of one chunk and their probabilities; plain cross-entropy needs all of both."""
    states_nh, labels_n = inputs(base)

    def peak(chunk: int) -> int:
        with Largest() as seen:
            found(base, states_nh, labels_n, logits=chunk * base.vocabulary)
        return seen.peak

    row, rest = 4 * base.vocabulary, 4 * states_nh.nbytes
    assert 2 * 4 * row < peak(4) < 2 * 4 * row + rest
    assert peak(COUNT) > 2 * COUNT * row
    with Largest() as seen:
        F.cross_entropy(base.logits(states_nh.clone().requires_grad_()), labels_n, reduction="sum").backward()  # type: ignore[no-untyped-call]
    assert seen.peak > 2 * COUNT * row
