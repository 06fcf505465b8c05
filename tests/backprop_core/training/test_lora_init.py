"""Variants of LoRA on a real two-layer model: what is committed is what was trained, and a base is never altered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backprop_core.errors import AdapterMismatch, Interrupted, RankTooLarge, VariantUnsupported
from backprop_core.evaluation.scoring import evaluate
from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.merging.strategies import merge
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.loading import LoadedBase, adapted, load
from backprop_core.schema.refs import AdapterRef, RowsRef, Start, TrainResult
from backprop_core.schema.specs import LoraSpec, MergeSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from tests.backprop_core import nano

Tensors = dict[str, torch.Tensor]
IDS = torch.arange(40)[None]
FP32 = ["lora", "rslora", "dora", "pissa"]
UP = "model.layers.0.mlp.up_proj"
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's


@pytest.fixture(scope="module")
def nf4(path: Path) -> LoadedBase:
    return load(path, precision="nf4", device="cpu")


@pytest.fixture(scope="module")
def store(shared: Store) -> Store:
    return shared


@pytest.fixture(scope="module")
def rows(store: Store) -> RowsRef:
    return nano.commit_rows(store, nano.chats(24))


def spec(variant: str, *, rank: int = 4, dropout: float = 0.0, **fields: Any) -> TrainSpec:
    lora = LoraSpec.model_validate({"rank": rank, "alpha": 8, "dropout": dropout, "variant": variant})
    return TrainSpec(**{"steps": 4, "batch_size": 8, "learning_rate": 1e-2, "max_length": 128, **fields}, lora=lora)


class Seen:
    """What a training says at each step; it is asked to stop after `stop_after`."""

    def __init__(self, look: Callable[[], Any] = lambda: None, stop_after: int | None = None) -> None:
        self.values: list[dict[str, float]] = []
        self.looked: Any = None
        self._look, self._stop_after = look, stop_after

    def __call__(self, step: int, total: int, values: dict[str, float]) -> None:
        self.values.append(values)
        self.looked = self._look() if step == total else None

    def should_stop(self) -> bool:
        return len(self.values) == self._stop_after


def run(
    base: LoadedBase,
    rows: RowsRef,
    store: Store,
    spec: TrainSpec,
    *,
    start: Start | None = None,
    seen: Seen | None = None,
) -> TrainResult:
    seen = seen or Seen()
    stop = {"on_metrics": seen, "should_stop": seen.should_stop}
    return train(base, rows, spec=spec, start=start, key="key", store=store, **stop)


def tensors(store: Store, ref: AdapterRef) -> Tensors:
    return adapters.read_adapter(store.local(ref)).tensors


def logits(base: LoadedBase) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = base.model(IDS).logits
    return found


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def product(found: Tensors, layer: str, scale: float) -> np.ndarray[Any, Any]:
    """s·B·A of a layer."""
    A, B = (found[f"base_model.model.{layer}.lora_{part}.weight"].double().numpy() for part in "AB")
    return scale * B @ A


@pytest.mark.parametrize("variant", FP32)
def test_what_is_committed_is_what_was_trained(
    path: Path, base: LoadedBase, rows: RowsRef, store: Store, variant: str
) -> None:
    """The untouched base with the committed adapter, and with it fused in for export, has the trained logits."""
    bare = logits(base)
    seen = Seen(lambda: logits(base))
    result = run(base, rows, store, spec(variant), seen=seen)
    assert seen.values[-1]["loss"] < seen.values[0]["loss"] - 0.05
    assert torch.equal(logits(base), bare)
    with adapted(base, result.adapter, store):
        assert difference(logits(base), seen.looked) < 1e-4 < 0.02 < difference(seen.looked, bare)
    fused, exported = Fused(path, store.local(result.adapter)), load(path, precision="fp32", device="cpu")
    exported.model.load_state_dict({name: fused.tensor(name) for name in fused.names()}, strict=False)
    assert difference(logits(exported), seen.looked) < 1e-4


@pytest.mark.parametrize("variant", [*FP32[1:], "loftq"])
def test_stopped_and_run_again_is_the_same(
    path: Path, base: LoadedBase, nf4: LoadedBase, rows: RowsRef, store: Store, variant: str
) -> None:
    """Resumed on a used base, with dropout and LoRA+, it ends at the bits of an uninterrupted run on a fresh one."""
    used = nf4 if variant == "loftq" else base
    asked = spec(variant, dropout=0.1, lora_plus=4)
    with pytest.raises(Interrupted, match="after step 2"):
        run(used, rows, store, asked, seen=Seen(stop_after=2))
    torch.manual_seed(99)
    resumed = run(used, rows, store, asked)
    whole = run(load(path, precision=used.precision, device="cpu"), rows, store, asked)
    assert resumed.adapter == whole.adapter


@pytest.mark.parametrize("variant", FP32[1:])
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_a_variant_starts_as_the_base(path: Path, rows: RowsRef, store: Store, variant: str, precision: Any) -> None:
    """Before the first step nothing is learned: the loss is that of plain LoRA, whatever the base's precision."""
    base = load(path, precision=precision, device="cpu")
    losses = []
    for name in ("lora", variant):
        seen = Seen()
        result = run(base, rows, store, spec(name, steps=1, learning_rate=1e-30), seen=seen)
        losses.append(seen.values[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    if variant == "pissa":
        assert np.abs(product(tensors(store, result.adapter), UP, 2.0)).max() < 1e-6


def test_pissa_starts_from_the_principal_part(base: LoadedBase, rows: RowsRef, store: Store, path: Path) -> None:
    """What the first four of eight committed ranks start from holds as much of W as the best matrix of rank four."""
    result = run(base, rows, store, spec("pissa", steps=1, learning_rate=1e-30))
    found = tensors(store, result.adapter)
    assert adapters.read_adapter(store.local(result.adapter)).config["r"] == 8
    halves = {key: tensor[:4] if "lora_A" in key else tensor[:, :4] for key, tensor in found.items()}
    W = load_file(path / "model.safetensors")[f"{UP}.weight"].double().numpy()
    singular = np.linalg.svd(W, compute_uv=False)
    left = np.linalg.norm(W - product(halves, UP, 2.0))
    assert left == pytest.approx(np.sqrt((singular[4:] ** 2).sum()), rel=2e-3)
    assert left < 0.98 * np.linalg.norm(W)
    A, B = (halves[f"base_model.model.{UP}.lora_{part}.weight"] for part in "AB")
    assert torch.allclose(A @ A.T, B.T @ B, atol=1e-5), "both factors have the same share"


def test_loftq_starts_closer_to_the_full_base(path: Path, nf4: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Its start has less of the quantization error, and what is committed is only what was learned from there."""
    full = logits(load(path, precision="fp32", device="cpu"))
    seen = Seen(lambda: logits(nf4))
    idle = run(nf4, rows, store, spec("loftq", rank=16, steps=1, learning_rate=1e-30), seen=seen)
    assert difference(seen.looked, full) < 0.8 * difference(logits(nf4), full)
    assert np.abs(product(tensors(store, idle.adapter), UP, 0.5)).max() < 1e-6
    learned = run(nf4, rows, store, spec("loftq", rank=16), seen=seen)
    base = load(path, precision="fp32", device="cpu")
    with adapted(base, learned.adapter, store):
        assert difference(logits(base), seen.looked) < 0.3 * difference(full, seen.looked)


def test_lora_plus_moves_B_faster(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """AdamW's first step has the rate's size in every entry: B moves by one rate, or by as many as LoRA+ says."""
    moved = []
    for ratio in (None, 16):
        seen = Seen()
        result = run(base, rows, store, spec("lora", steps=1, weight_decay=0.0, lora_plus=ratio), seen=seen)
        B = tensors(store, result.adapter)[f"base_model.model.{UP}.lora_B.weight"]
        moved.append(B.abs().median().item() / seen.values[0]["learning_rate"])
    assert moved == pytest.approx([1, 16], rel=1e-2)


def test_magnitudes_do_not_decay(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """With a huge decay and a tiny rate A shrinks and DoRA's magnitudes stay the norms of the base's rows."""
    result = run(base, rows, store, spec("dora", steps=4, learning_rate=1e-6, weight_decay=1e5))
    found = tensors(store, result.adapter)
    norms = base.model.get_submodule(UP).weight.norm(dim=1)
    assert torch.allclose(found[f"base_model.model.{UP}.lora_magnitude_vector"], norms, atol=1e-4)


def test_dora_goes_on_and_is_merged(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """SLAO with DoRA: magnitudes start as they were tuned and are averaged as B is, and the merged adapter answers."""
    first = run(base, rows, store, spec("dora"))
    start = Start(tuned=first.adapter, orthonormal=True)
    idle = run(base, rows, store, spec("dora", steps=1, learning_rate=1e-30), start=start)
    second = run(base, rows, store, spec("dora", seed=1), start=start)
    merged = merge(first.adapter, second.adapter, count=2, spec=MergeSpec(), store=store)
    old, same, new, both = (tensors(store, ref) for ref in (first.adapter, idle.adapter, second.adapter, merged))
    names = [key for key in old if key.endswith("lora_magnitude_vector")]
    assert len(names) == 14
    for key in names:
        assert torch.equal(same[key], old[key])
        expected = old[key].double() + (new[key] - old[key]).double() / 2**0.5
        assert torch.allclose(both[key].double(), expected, atol=1e-6)
    scores = [evaluate(base, ref, rows, max_length=128, store=store).loss for ref in (None, first.adapter, merged)]
    assert scores[2] < scores[0] - 0.1


@pytest.mark.parametrize("variant, other", [("rslora", "lora"), ("dora", "lora"), ("lora", "dora"), ("rslora", "dora")])
def test_a_line_keeps_its_variant(base: LoadedBase, rows: RowsRef, store: Store, variant: str, other: str) -> None:
    """Another variant gives B·A another meaning."""
    start = Start(tuned=run(base, rows, store, spec(other, steps=1)).adapter, orthonormal=True)
    with pytest.raises(AdapterMismatch, match="use_"):
        run(base, rows, store, spec(variant), start=start)


def test_what_cannot_start_is_refused(base: LoadedBase, nf4: LoadedBase, rows: RowsRef, store: Store) -> None:
    """PiSSA and LoftQ where there is an adapter already, LoftQ on whole weights, and a rank that no matrix has."""
    plain = run(base, rows, store, spec("lora", steps=1)).adapter
    for variant, where in (("pissa", base), ("loftq", nf4)):
        with pytest.raises(VariantUnsupported, match=variant):
            run(where, rows, store, spec(variant), start=Start(tuned=plain, orthonormal=True))
    with pytest.raises(VariantUnsupported, match="fp32"):
        run(base, rows, store, spec("loftq"))
    with pytest.raises(RankTooLarge, match="rank 33"):
        run(base, rows, store, spec("pissa", rank=33))


def test_a_pissa_adapter_goes_on_as_plain_lora(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """It ends as an ordinary adapter of the shape that its spec names, which a next run starts from."""
    asked = spec("pissa")
    start = Start(tuned=run(base, rows, store, asked).adapter, orthonormal=True)
    assert asked.lora.committed == LoraSpec(rank=8, alpha=16)
    run(base, rows, store, asked.model_copy(update={"lora": asked.lora.committed}), start=start)
