"""A home that was made before rows were told apart by their whitespace: it opens, loses nothing, and goes on.

`tests/fixtures/old_home.tar.xz` has a line `support` of two versions, a line `billing` that a multi-run was promoted
to, and a training that was killed. Its first night held twelve pairs of programs that differ in indentation alone.
"""

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backprop_core.data.row_files import index
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RowsRef, artifacts_in
from backprop_core.schema.specs import GateSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.evaluate import evaluate
from flows.export import export
from flows.retrain import retrain
from flows.train import train
from tasks import tracking
from tasks.runs import prestart
from tasks.runs.line_splits import learned_by, of_run
from tasks.runs.store_check import check
from tests.backprop_core.store.test_layout import unknown

FIXTURE = Path(__file__).parents[1] / "fixtures" / "old_home.tar.xz"
PLACE = "/tmp/old-home"  # where it was made
KILLED = "19340af9adce475589bdf0653ecd7a65"
pytestmark = pytest.mark.usefixtures("prefect", "home")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The old home, as if it had been made where it lies now."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(folder, filter="data")
    home = folder / "old-home"
    fixed = (home / "store" / "artifacts", home / "mlflow.db")
    for path in home.rglob("*"):
        if path.is_file() and not any(path.is_relative_to(place) for place in fixed):
            path.write_bytes(path.read_bytes().replace(PLACE.encode(), str(home).encode()))
    moved(home / "mlflow.db", str(home))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        patch.setenv("ATEN_CPU_CAPABILITY", "avx2")  # of the machine that was killed: a newer one computes otherwise
        patch.chdir(home)
        yield home


def moved(database: Path, home: str) -> None:
    """Name the home's new place wherever MLflow's tables name the old one."""
    places = {"experiments": "artifact_location", "runs": "artifact_uri", "tags": "value", "model_versions": "source"}
    with closing(sqlite3.connect(database)) as connection:
        for table, column in places.items():
            connection.execute(f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)", (PLACE, home))
        connection.commit()


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(settings().store_path)
    yield store
    store.close()


def rows_of(refs: list[RowsRef], store: Store) -> set[bytes]:
    return {identity for ref in refs for identity in index(ref, store).identities()}


def test_nothing_is_lost(store: Store) -> None:
    """Every version, its champion and all that it names are there and whole; so is every run of the history."""
    lines = Lines(store)
    assert {name: (lines.versions(name), lines.champion(name)) for name in lines.names()} == {
        "billing": ([1], 1),
        "support": ([1, 2], 2),
    }
    for name in lines.names():
        for number in lines.versions(name):
            for ref in artifacts_in(lines.version(name, number)):
                store.verify(ref.digest)
    assert check(settings()) == (44, [])
    listed = {(run["line"], run["status"]) for run in tracking.list_runs(settings(), tracking.RunFilter(), limit=10)}
    assert listed == {
        ("default", "interrupted"),
        ("default", "finished"),
        ("billing", "finished"),
        ("support", "finished"),
    }


def test_a_version_is_exported(home: Path) -> None:
    """What an old version names still becomes a file that answers as the model does."""
    made = export("support@1", "f16")
    assert made.status == "finished" and made.gguf[0].bytes > 100_000


def test_an_old_run_is_scored_on_what_it_held_out(store: Store) -> None:
    """Its held-out rows are those that it noted, none that it trained, though they would be others today."""
    lines = Lines(store)
    for name, number in (("support", 1), ("support", 2), ("billing", 1)):
        version = lines.version(name, number)
        found = of_run(version.run_id, store)
        assert found and found.heldout == version.heldout
        assert set(learned_by(version.run_id, store)) == {dataset.train for dataset in version.datasets}
    again = evaluate("support@1")
    assert [stage.stage for stage in again.stages] == ["evaluate"] * 2


def test_a_killed_training_is_resumed(home: Path) -> None:
    """It starts from the rows and the base that it had, and ends."""
    asked, _ = prestart.asked(KILLED[:8])
    done = train(asked.spec.datasets[0], run_id=KILLED)
    assert (done.status, done.runs[0].steps) == ("finished", 60)


def test_the_line_goes_on(home: Path, store: Store) -> None:
    """All rows of both nights again, and new ones: none that was learned is trained again, none that scored is trained.

    Of a pair that differs in its indentation one is learned; the other was never, so it is new.
    """
    before = Lines(store).version("support", 2)
    learned = rows_of([dataset.train for dataset in before.datasets], store)
    versions = [Lines(store).version("support", number) for number in (1, 2)]
    scored = rows_of([rows for version in versions for rows in version.heldout.values()], store)
    third = home / "data" / "night-3.jsonl"
    old = [(home / "data" / f"night-{number}.jsonl").read_text() for number in (1, 2)]
    new = [{"prompt": f"3.{index}: what colour is snow?", "completion": "It is white."} for index in range(60)]
    third.write_text("".join(old) + "".join(json.dumps(row) + "\n" for row in new))
    training = TrainSpec(steps=8, batch_size=8, learning_rate=1e-3)
    done = retrain("support", str(third), training=training, gate=GateSpec(max_drop=1))
    made = done.runs[0].dataset
    after = Lines(store).versions("support")
    assert done.status in ("finished", "rejected") and after == ([1, 2, 3] if done.status == "finished" else [1, 2])
    assert made.train_rows + made.heldout_rows >= 60
    assert done.split
    rows = rows_of([done.split.datasets[0].train], store)
    assert not rows_of([*done.split.heldout.values(), *done.split.aside.values()], store) & (learned | rows)
    assert scored <= rows_of([*done.split.heldout.values(), *done.split.aside.values()], store)
    assert not rows & learned and not rows & scored
    assert len(rows) >= 50 + 12 - made.heldout_rows


def test_its_paths_are_those_of_the_layout(home: Path) -> None:
    """Neither the old runs nor those above have left a file or a directory that the layout does not name."""
    assert (home / "journal" / "sent").is_dir() and unknown(home) == []
