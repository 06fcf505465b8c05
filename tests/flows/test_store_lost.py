"""The store is lost, MLflow is kept: real flows go on from what it has."""

import shutil
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.store.artifacts import Store
from flows.cli import run_here
from flows.cli.history import show_line
from flows.export import export
from flows.retrain import retrain
from flows.train import train
from tasks import tracking
from tasks.runs.prestart import asked
from tasks.tracking.journal import Journal
from tests.backprop_core.lines.test_versions import version
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


def test_a_run_is_replayed_from_mlflow_alone(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its file of rows is missing too: the copy in MLflow is read, which is said, and gives the same adapter."""
    file = Path(batch(tmp_path, 3))
    made = train(str(file), model=str(base), training=SHORT)
    lose()
    file.unlink()
    before, copies = asked(made.run_id[:12])
    again = run_here.run(before.flow, before.spec, elsewhere=copies)
    assert again.run_id != made.run_id and again.merged and made.merged
    assert again.merged.digest == made.merged.digest
    assert f"{file} is missing" in caplog.text


def test_a_line_that_is_only_in_mlflow_is_shown(same_logging: None) -> None:
    """`show-line` looks there for a line that the store lacks."""
    with Journal(settings().journal_path, "a1" * 16) as journal:
        journal.start(line="support", name="retrain")
        journal.end("finished")
    Lines(Store(settings().store_path)).append("support", version(1), after=0)
    lose()
    assert [each["number"] for each in show_line("support").document["versions"]] == [1]
