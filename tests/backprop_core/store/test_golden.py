"""Golden results: who changes what a stage makes has to raise its VERSION, and this file with it.

Rows and pools are pinned in test_curate, the plan of a training in test_plan, keys in test_keys.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from backprop_core.evaluation.scoring import evaluate
from backprop_core.export.gguf import convert
from backprop_core.merging.strategies import merge
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.models.loading import load
from backprop_core.schema.refs import AdapterRef
from backprop_core.schema.specs import LoraSpec, MergeSpec, TrainSpec
from backprop_core.stages import versions
from backprop_core.store.artifacts import Store, file_digest
from backprop_core.training.loop import train
from tests.backprop_core import nano

SPEC = TrainSpec(steps=6, batch_size=4, precision="fp32", device="cpu", learning_rate=1e-2, lora=LoraSpec(rank=4))


LOSSES = [5.55053, 5.46833, 5.41889]  # first step, last step, evaluated


def even(shape, scale: float = 0.25) -> torch.Tensor:
    """A tensor of small multiples of 1/16, exact in every precision and on every machine."""
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * 7 % 33 - 16) / 16 * scale).reshape(shape)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The nano model with weights that are the same everywhere."""
    directory = nano.build(tmp_path_factory.mktemp("golden") / "base")
    weights = load_file(directory / "model.safetensors")
    even_weights = {name: even(tensor.shape).to(tensor.dtype) for name, tensor in sorted(weights.items())}
    save_file(even_weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_versions():
    """These are the versions that the figures below were taken with."""
    raised = {"curate": 6, "split": 3, "pool": 2, "unseen": 3, "apart": 4, "replay": 4, "replay_by_task": 2}
    raised |= {"gate": 3, "merge": 2, "convert": 3, "convert_outside": 3, "package": 4, "fidelity": 2, "train": 2}
    raised |= {"evaluate": 2, "search": 2, "harness": 2, "generate": 2, "answer": 2, "reference": 2, "importance": 2}
    raised |= {"carried_over": 2}
    assert {name: version for name, version in versions().items() if version != 1} == raised


def commit(store: Store, base, scale: float) -> AdapterRef:
    names = ["down_proj", "up_proj"]
    config = adapters.config_of(LoraSpec(rank=4), names)
    keys = {
        f"base_model.model.model.layers.0.mlp.{name}.lora_{part}.weight": even(shape, scale)
        for name, width, out in (("up_proj", 64, 128), ("down_proj", 128, 64))
        for part, shape in (("A", (4, width)), ("B", (out, 4)))
    }
    with store.begin("adapter") as directory:
        adapters.write_adapter(Adapter(config, keys), directory)
        return store.commit(directory, AdapterRef, kind="tuned", record={})


def test_merge(store, base):
    """Run 4 counts one half, which is exact in float32 everywhere."""
    merged = merge(commit(store, base, 0.25), commit(store, base, 0.5), count=4, spec=MergeSpec(), store=store)
    assert merged.digest == "5184029e95610bae8f0d6bb48b38edc729c553fd48d32cb05a837367c043fb1b"


def test_convert(base, tmp_path):
    """The bytes of an f16 file."""
    convert(base, None, tmp_path / "model.gguf", outtype="f16")
    assert file_digest(tmp_path / "model.gguf") == "335b9b2a9da27c4138f7c85722231eeb3a73bcdf0e11f82ede863ff8afd45cec"


def test_train_and_evaluate(store, base, tmp_path):
    """Losses of the first and last step and the score, to what CPUs agree on."""
    directory = shutil.copytree(base, tmp_path / "base")
    loaded = load(directory, precision="fp32", device="cpu")
    rows = nano.commit_rows(store, nano.chats(16))
    losses: list[float] = []
    trained = train(
        loaded,
        rows,
        spec=SPEC,
        start=None,
        key="0" * 64,
        store=store,
        on_metrics=lambda step, total, values: losses.append(values["loss"]),
        should_stop=lambda: False,
    )
    scores = evaluate(loaded, trained.adapter, rows, max_length=256, store=store)
    assert [losses[0], losses[-1], scores.loss] == pytest.approx(LOSSES, rel=1e-3)
