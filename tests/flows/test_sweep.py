"""A sweep finds the better setting, calls noise noise, and spends nothing twice."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.row_files import index
from backprop_core.errors import ConfigInvalid, NoRows
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import BaseRef, RunResult
from backprop_core.schema.specs import DatasetSpec, LoraSpec, RunSpec, TrainSpec
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store
from flows.cli import main
from flows.sweep import divided, sweep
from flows.train import train
from tasks.runs.flow_run import Run
from tasks.runs.outcome import Notes
from tasks.runs.prepared_run import Prepared
from tasks.stages.parent_place import ParentPlace
from tasks.tracking.journal import read_journal
from tasks.tracking.journal_lines import Ended, Started
from tests.backprop_core.data.test_curation import Bench
from tests.backprop_core.data.test_rows_to_choose_by import customers

TRAINING = TrainSpec(steps=12, batch_size=8, learning_rate=1e-2, lora=LoraSpec(rank=4))
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
RATE, RANK = "training.learning_rate", "training.lora.rank"
GRID = {RATE: [1e-5, 1e-2], RANK: [4, 8]}
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests: they share what is cached."""
    return shared_home


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    """What colour things have."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("rows") / "colours.jsonl"
    things = [rng.choice(sorted(COLOURS)) for _ in range(150)]
    made = [
        {"prompt": f"{number}: what colour is {thing}?", "completion": f"It is {COLOURS[thing]}."}
        for number, thing in enumerate(things)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


@pytest.fixture(scope="module")
def grid(base, rows, home, prefect) -> RunResult:
    return sweep(rows, GRID, model=str(base), training=TRAINING)


def test_the_better_rate_is_found(grid):
    """Of 2 × 2 combinations the one with the better rate is taken; both with the other rate are clearly worse."""
    found = grid.sweep
    assert [row.settings for row in found.cells] == [{RATE: r, RANK: k} for r in GRID[RATE] for k in GRID[RANK]]
    slow, fast = found.cells[:2], found.cells[2:]
    assert not any(row.standing.as_good for row in slow) and any(row.standing.as_good for row in fast)
    assert all(row.standing.difference_high < 0 for row in slow)
    assert found.cells[2].is_default and sum(row.is_default for row in found.cells) == 1
    assert grid.status == "finished" and found.reason == grid.reason
    assert "keep the default" in found.reason or found.take[RATE] == 1e-2
    assert all(row.steps == 12 and row.seconds > 0 and row.tokens_per_second for row in found.cells)


def test_what_scores_versions_chooses_nothing(grid, base, rows):
    """The rows that score a sweep are among those that a run of the same dataset trains; its held-out rows are not."""
    [trained] = train(rows, model=str(base), training=TRAINING).runs
    assert grid.sweep.rows == trained.dataset.train_rows // 5
    assert grid.split.datasets[0].train.rows == trained.dataset.train_rows


def test_the_second_call_is_cached(grid, base, rows):
    """The same sweep again computes nothing, and finds the same; one more value is one more training for each rank."""
    again = sweep(rows, GRID, model=str(base), training=TRAINING)
    assert all(stage.cached for stage in again.stages) and all(row.cached for row in again.sweep.cells)
    same = ("settings", "standing", "is_default")
    figures = [[getattr(row, name) for name in same] for row in again.sweep.cells]
    assert figures == [[getattr(row, name) for name in same] for row in grid.sweep.cells]
    more = sweep(rows, {**GRID, RATE: [*GRID[RATE], 1e-6]}, model=str(base), training=TRAINING)
    assert [row.cached for row in more.sweep.cells] == [True] * 4 + [False] * 2


def test_equal_settings_are_noise(grid, base, rows):
    """Two values that cannot change a result: no difference beyond noise, so the default stays."""
    result = sweep(rows, {"training.checkpoint_seconds": [100, 200]}, model=str(base), training=TRAINING)
    assert result.sweep.take is None and result.reason == "no difference beyond noise: keep the default"
    assert [row.standing.difference for row in result.sweep.cells] == [0, 0]


def test_a_combination_that_fails_is_a_row(grid, base, rows, home):
    """Its error code is in its row and in its run's record; the others are trained and compared."""
    result = sweep(rows, {"training.lora.alpha": [16, 1e38]}, model=str(base), training=TRAINING)
    good, bad = result.sweep.cells
    assert (bad.code, bad.standing) == ("RUNTIME_LOSS_NOT_FINITE", None) and good.standing and good.code is None
    assert result.status == "finished" and result.sweep.take == {"training.lora.alpha": 16.0}
    lines = [line for _, line in read_journal(next(settings().journal_path.rglob(f"{result.run_id}.jsonl")))]
    names = {line.run: line.name for line in lines if isinstance(line, Started) and line.parent}
    ends = {line.run: line.status for line in lines if isinstance(line, Ended)}
    assert names == {good.run_id: "lora.alpha=16.0", bad.run_id: "lora.alpha=1e+38"}
    assert (ends[good.run_id], ends[bad.run_id]) == ("finished", "failed")


@pytest.mark.parametrize(
    ("grid_", "says"),
    [
        ({}, "no settings"),
        ({RATE: [1e-4]}, "two values"),
        ({"gate.max_drop": [0.1, 0.2]}, "cannot try gate.max_drop"),
        ({"training.learning_speed": [1, 2]}, "unknown field training.learning_speed"),
        ({"training.learning_rate.x": [1, 2]}, "training.learning_rate"),
        ({RATE: [1e-4, 5]}, "training.learning_rate=5"),
        ({RANK: list(range(1, 66))}, "65 combinations"),
        ({"training.early_stopping.patience": [1, 2]}, "early_stopping.patience changes nothing .* no held-out row"),
        ({"training.replay_rows": [0, 20]}, "replay_rows changes nothing in a sweep: there is no earlier dataset"),
        ({RATE: [1e-4, 1e-3], "training.replay": [0.1]}, "training.replay changes nothing"),
        ({"training.preference.loss": ["dpo", "kto"]}, "preferences are not scored"),
    ],
)
def test_what_cannot_be_tried_is_refused(base, rows, grid_, says):
    """Before anything is trained, and by name."""
    with pytest.raises(ConfigInvalid, match=says):
        sweep(rows, grid_, model=str(base), training=TRAINING)


def test_the_command(grid, base, rows, capsys, prefect_home):
    """`--set` with commas is what is tried, with one value what is fixed; the table says what to take."""
    fixed = ["--steps", "12", "--batch-size", "8", "--set", f"{RANK}=4", "--model", str(base), "--data", rows]
    words = ["sweep", *fixed, "--set", f"{RATE}=1e-5,1e-2"]
    assert main.main([*words, "--plan"]) == 0
    assert "train" in capsys.readouterr().out
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "learning_rate=0.01" in out and "take training.learning_rate=0.01" in out and Path(rows).is_file()


class Here:
    """Carries out each stage at once."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def call(self, stage: Stage[Any], **parameters: Any) -> Any:
        return stage.carry_out(parameters, ParentPlace(self.store, "0" * 64, stage.name))

    def ahead(self, work: Any) -> None:
        """Nothing runs ahead."""

    def serve(self, file: Any, heldout: Any) -> dict[str, str]:
        raise AssertionError


def test_a_group_trains_or_scores(tmp_path: Path) -> None:
    """The rows that score a sweep are of whole groups; no row of theirs is trained. One group alone is too few."""
    bench = Bench(tmp_path)
    spec = RunSpec(datasets=[DatasetSpec(path="x")])
    prepared = Prepared(flow="sweep", spec=spec, base=BaseRef(name="b", digest="b" * 64), sources=[], watch=[])
    run = Run("a1" * 16, prepared, bench.store, Here(bench.store), Notes())
    dataset = bench.curate(customers(60), group_by="customer")
    part = divided(run, dataset)
    trained, scored = (set(index(rows, bench.store).entries["group"]) for rows in (part.train, part.heldout))
    assert trained and scored and not trained & scored
    assert part.train.rows + part.heldout.rows == dataset.train.rows
    assert 30 < part.heldout.rows <= dataset.train.rows // 5
    alone = [{**row, "customer": 1} for row in customers(30)]
    with pytest.raises(NoRows, match="a group stay together"):
        divided(run, dataset.model_copy(update={"train": bench.read(alone, group_by="customer").rows}))
