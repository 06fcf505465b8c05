"""The store is lost, MLflow is kept: real flows go on from what it has."""

import shutil
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.store.artifacts import Store
from flows.export import export
from flows.retrain import retrain
from tasks import tracking
from tests.flows.test_retrain import OPEN, SHORT, batch

pytestmark = [pytest.mark.usefixtures("warm_worker", "prefect", "home"), pytest.mark.timeout(900)]


def lose() -> Store:
    """Remove the store and all journals."""
    assert tracking.sync(settings(), look=True).error is None
    shutil.rmtree(settings().store_path)
    shutil.rmtree(settings().journal_path)
    return Store(settings().store_path)


def test_a_champion_is_exported_and_continued_from_mlflow_alone(base: Path, tmp_path: Path) -> None:
    """The same GGUF file, byte for byte; then the next night continues the line, and nothing of it is made again."""
    night = retrain("support", batch(tmp_path, 1), model=str(base), training=SHORT, gate=OPEN)
    [file] = export("support", quantization=["f16"]).gguf
    store = lose()
    [again] = export("support", quantization=["f16"]).gguf
    assert again.digest == file.digest and Path(again.path).is_file()
    assert tracking.show_run(settings(), night.run_id).merged.digest == night.merged.digest  # type: ignore[union-attr]
    same = retrain("support", batch(tmp_path, 1), training=SHORT, gate=OPEN)
    assert same.status == "unchanged"
    after = retrain("support", batch(tmp_path, 2), training=SHORT, gate=OPEN)
    assert after.status in ("finished", "rejected") and after.gate and after.gate.against == "champion"
    first = Lines(store).version("support", 1)
    assert first.run_id == night.run_id and first.merged.digest == night.merged.digest  # type: ignore[union-attr]
    assert list(store.check()) == []
