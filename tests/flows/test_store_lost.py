"""The store is lost, MLflow is kept: real flows go on from what it has."""

import shutil
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import DatasetSpec, ExportSpec, GateSpec, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.export import export
from flows.retrain import retrain
from flows.train import train
from tasks import tracking
from tests.flows.test_retrain import batch

pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")
TRAINING = TrainSpec(steps=3, batch_size=8, lora=LoraSpec(rank=4))
OPEN = GateSpec(question="free")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests."""
    return shared_home


def lose() -> Store:
    """Remove the store and all journals."""
    assert tracking.sync(settings(), look=True).error is None
    shutil.rmtree(settings().store_path)
    shutil.rmtree(settings().journal_path)
    return Store(settings().store_path)


def test_a_champion_is_exported_and_continued_from_mlflow_alone(base, data, tmp_path):
    """The same GGUF file, byte for byte; then the next night continues the line, as its second version."""
    night = retrain("support", batch(tmp_path, 1), model=str(base), training=TRAINING, gate=OPEN)
    assert night.version == 1
    [file] = export("support", quantization=["f16"]).gguf
    lose()
    again = export("support", quantization=["f16"])
    assert [one.digest for one in again.gguf] == [file.digest]
    assert Path(again.gguf[0].path).is_file()
    after = retrain("support", batch(tmp_path, 2), model=str(base), training=TRAINING, gate=OPEN)
    lines = Lines(Store(settings().store_path))
    assert after.status in ("finished", "rejected"), after.error
    assert lines.version("support", 1).merged.digest == night.merged.digest


def test_a_finished_run_is_all_cached_from_mlflow_alone(base, data):
    """The same run again on an empty store computes nothing: its stages are on record."""
    spec = {"datasets": [DatasetSpec(path=data[0])], "model": str(base), "training": TRAINING}
    first = train(**spec, export=ExportSpec(quantizations=["f16"]))
    store = lose()
    shown = tracking.show_run(settings(), first.run_id)
    assert shown.merged == first.merged
    [file] = export(first.run_id, quantization=["f16"]).gguf
    assert file.digest == first.gguf[0].digest
    assert list(store.check()) == []
