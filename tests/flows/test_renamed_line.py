"""A line that was renamed goes on as if it had not been: the same tasks, and no row on another side."""

from pathlib import Path

import pytest

from backprop_core.data.row_files import index
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.store.artifacts import Store
from flows.retrain import retrain
from flows.rollback import rollback
from tasks.runs.line_renaming import rename
from tests.flows.test_retrain import GOOD, OPEN, batch

pytestmark = pytest.mark.usefixtures("warm_worker", "prefect")


def test_a_renamed_line_goes_on(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was held out scores the same task after it, and is never trained; the same rows are still learned; it rolls
    back under its new name, and the old one is free."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    first, second = batch(tmp_path, 1), batch(tmp_path, 2)
    options = {"model": str(base), "training": GOOD, "gate": OPEN}
    assert retrain("support", first, **options).version == 1  # type: ignore[arg-type]
    rename("support", "desk", "ann", settings())
    assert retrain("desk", first, **options).status == "unchanged"  # type: ignore[arg-type]
    done = retrain("desk", second, **options)  # type: ignore[arg-type]
    assert (done.status, done.line) in {("finished", "desk"), ("rejected", "desk")}
    store = Store(settings().store_path)
    old = Lines(store).version("desk", 1)
    assert [run.dataset.task for run in done.runs] == ["support"] and list(old.heldout) == ["support"]
    assert done.evaluation and done.evaluation.tasks == ["support"]
    if done.version:
        new = Lines(store).version("desk", done.version)
        held = index(new.heldout["support"], store).keys
        assert index(old.heldout["support"], store).among(held).all() or new.aside
        assert not index(new.datasets[-1].train, store).among(index(old.heldout["support"], store).keys).any()
        assert rollback("desk", to=1).status == "finished" and Lines(store).champion("desk") == 1
    assert Lines(store).names() == ["desk"]
    fresh = retrain("support", second, **options)  # type: ignore[arg-type]
    assert fresh.version in (1, None) and fresh.line == "support"
