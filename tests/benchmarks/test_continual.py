"""The benchmark of continual learning: what it computes once, and what its figures mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import continual, continual_cell, continual_table
from benchmarks.continual_cell import METHODS, Cell, Plan, Result
from tests.backprop_core import nano


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two tasks of a few rows, one order, one seed."""
    place = tmp_path_factory.mktemp("benchmark")
    for number, task in enumerate(("first", "second")):
        for side, count in (("train", 12), ("test", 6)):
            rows = nano.chats(count, seed=10 * number + count)
            (place / f"{task}.{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = nano.build(place / "base")
    words = {"tasks": place, "model": base, "store": place / "store", "device": "cpu", "epochs": 1, "batch-size": 8}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return continual.planned(continual.arguments([*flags, "--orders", "1", "--seeds", "1"]))


def notes(plan: Plan) -> set[Path]:
    return set((plan.store / "cache" / "notes").iterdir())


def test_one_trajectory_serves_every_merge(plan: Plan) -> None:
    """A cell trains once for each kind of start, whatever the number of methods; done again, it does nothing."""
    cell = Cell(rate="mild", replay=0, order=0, seed=0)
    results = continual_cell.run(plan, cell)
    assert [result.method for result in results] == list(METHODS)
    trained = [note for note in notes(plan) if "train_loss" in note.read_text()]
    assert len(trained) == 3  # the first run, the second from orthonormal rows, the second as it is
    before = {note: note.stat().st_mtime_ns for note in notes(plan)}
    assert continual_cell.run(plan, cell) == results
    assert {note: note.stat().st_mtime_ns for note in notes(plan)} == before


def test_replay_and_all_at_once(plan: Plan) -> None:
    """Replay shares the first run; all at once is one run on the rows of every task."""
    continual_cell.run(plan, Cell(rate="mild", replay=0, order=0, seed=0))
    before = len(notes(plan))
    replayed = continual_cell.run(plan, Cell(rate="mild", replay=0.05, order=0, seed=0))
    trained = [note for note in notes(plan) if "train_loss" in note.read_text()]
    assert len(notes(plan)) > before and len(trained) == 5 and len(replayed) == len(METHODS)
    [bound] = continual_cell.run(plan, Cell(rate="mild", replay=0, order=None, seed=0))
    assert bound.method == "all-at-once" and len(bound.last) == 2


def result(method: str, seed: int, last: list[float], then: list[float]) -> Result:
    return Result(method=method, cell=Cell(rate="mild", replay=0, order=0, seed=seed), last=last, then=then)


def test_figures(plan: Plan) -> None:
    """Average, transfer, worst task and paired differences are those of two cells done by hand."""
    results = [
        result("sequential", 0, [0.2, 0.6], [0.8, 0.6]),
        result("sequential", 1, [0.4, 0.4], [0.6, 0.4]),
        result("slao", 0, [0.5, 0.7], [0.6, 0.7]),
        result("slao", 1, [0.3, 0.3], [0.5, 0.3]),
    ]
    rows = continual_table.figures(plan, results, {"first": 0.1, "second": 0.3})
    found: dict[str, dict[str, Any]] = {row["strategy"]: row for row in rows if row["rate"] == "mild"}
    assert found["base"]["average"] == 20 and found["base"]["worst"] == 10
    slao = found["slao"]
    assert (slao["average"], slao["backward_transfer"], slao["learned"], slao["worst"]) == (45, -15, 52.5, 40)
    assert slao["over_sequential"] == {"mean": 5, "std": 21.21, "won": 1} and slao["by_order"] == [45]
    assert "| slao | 0% | 45.0 ± 21.2 | -15.0 | 52.5 | 40.0 | +5.0 ± 21.2 (1 of 2) |" in continual_table.table_of(
        rows, "mild", 1
    )
