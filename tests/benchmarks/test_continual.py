"""The benchmark of continual learning: what it computes once, and what its figures mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import continual, continual_cell, continual_table
from benchmarks.continual_cell import METHODS, Cell, Plan, Result
from benchmarks.continual_results import Results, settings
from tests.backprop_core import nano


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of a few rows, and a base."""
    place = tmp_path_factory.mktemp("benchmark")
    for number, task in enumerate(("first", "second")):
        for side, count in (("train", 12), ("test", 6)):
            rows = nano.chats(count, seed=10 * number + count)
            (place / f"{task}.{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nano.build(place / "base")
    return place


@pytest.fixture(scope="module")
def plan(place: Path) -> Plan:
    """One order, one seed."""
    return planned_in(place / "store", place)


def planned_in(store: Path, place: Path) -> Plan:
    words = {"tasks": place, "model": place / "base", "store": store, "device": "cpu", "epochs": 1, "batch-size": 8}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return continual.planned(continual.arguments([*flags, "--orders", "1", "--seeds", "1"]))


def notes(plan: Plan) -> set[Path]:
    return set((plan.store / "cache" / "notes").iterdir())


def test_one_trajectory_serves_every_merge(plan: Plan) -> None:
    """A cell trains once for each kind of start, whatever the number of methods; done again, it does nothing."""
    cell = Cell(rate="mild", replay=0, order=0, seed=0)
    results = continual_cell.run(plan, cell, list(METHODS))
    assert [result.method for result in results] == list(METHODS)
    trained = [note for note in notes(plan) if "train_loss" in note.read_text()]
    assert len(trained) == 3  # the first run, the second from orthonormal rows, the second as it is
    before = {note: note.stat().st_mtime_ns for note in notes(plan)}
    assert continual_cell.run(plan, cell, list(METHODS)) == results
    assert {note: note.stat().st_mtime_ns for note in notes(plan)} == before


def test_replay_and_all_at_once(plan: Plan) -> None:
    """Replay shares the first run; all at once is one run on the rows of every task."""
    continual_cell.run(plan, Cell(rate="mild", replay=0, order=0, seed=0), list(METHODS))
    before = len(notes(plan))
    replayed = continual_cell.run(plan, Cell(rate="mild", replay=0.05, order=0, seed=0), list(METHODS))
    trained = [note for note in notes(plan) if "train_loss" in note.read_text()]
    assert len(notes(plan)) > before and len(trained) == 5 and len(replayed) == len(METHODS)
    [bound] = continual_cell.run(plan, Cell(rate="mild", replay=0, order=None, seed=0), ["all-at-once"])
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
    half = 12.706 * 15  # t with one degree of freedom, times 21.2 / √2
    over = slao["over_sequential"]
    assert (over["mean"], over["won"], over["cells"]) == (5, 1, 2) and slao["by_order"] == [45]
    assert (over["low"], over["high"]) == (pytest.approx(5 - half, abs=0.1), pytest.approx(5 + half, abs=0.1))
    line = "| slao | 0% | 45.0 ± 21.2 | -15.0 | 52.5 | 40.0 | +5.0 (-185.6 to +195.6; 1 of 2) |"
    assert line in continual_table.table_of(rows, "mild", 1)


def test_replay_is_compared_with_slao_as_published(plan: Plan) -> None:
    """A method with replay is compared with SLAO without, cell by cell, where both are measured."""
    rows = [result("slao", seed, [0.5, 0.5], [0.5, 0.5]) for seed in (0, 1)]
    more = result("slao, A merged", 0, [0.5, 0.75], [0.5, 0.75])
    replayed = more.model_copy(update={"cell": more.cell.model_copy(update={"replay": 20})})
    figures = continual_table.figures(plan, [*rows, replayed], {"first": 0.1})
    [found] = [row for row in figures if row["strategy"] == "recommended"]
    assert found["over_slao"] is None and found["over_sequential"] is None
    assert found["over_published"] == {"mean": 12.5, "low": None, "high": None, "won": 1, "cells": 1}
    [claim] = continual_table.claims(figures)
    assert claim == (
        "mild: slao, A merged, 20 rows: 62.5 %, over SLAO as published +12.5 (1 of 1); the untouched base 10.0 %"
    )


def test_results_are_kept_by_method_and_cell(plan: Plan, tmp_path: Path) -> None:
    """A file of results says what is missing, takes more orders, and refuses results of other settings."""
    file, own = tmp_path / "cells.json", settings(plan, "base")
    one, other = (Cell(rate="mild", replay=20, order=0, seed=seed) for seed in (0, 1))
    kept = Results(file, own)
    kept.add([Result(method="slao", cell=one, then=[0.5, 0.25], last=[0.5, 0.125])])
    kept.add([Result(method="slao", cell=other, then=[0.5, 0.25], last=[0.25, 0.125])])
    longer = own | {"orders": [*own["orders"], own["orders"][0][::-1]]}
    again = Results(file, longer)
    assert again.every == kept.every and again.missing(["slao", "average"], one) == ["average"]
    again.add([])
    assert json.loads(file.read_text())["settings"]["orders"] == longer["orders"]
    Results(file, own)
    for name, value in {"base": "another", "rates": {"mild": 0.5}, "orders": [own["orders"][0][::-1]]}.items():
        with pytest.raises(SystemExit, match="other settings"):
            Results(file, own | {name: value})


def test_a_fresh_machine_goes_on_from_the_results(plan: Plan, place: Path, tmp_path: Path) -> None:
    """With the file of results and an empty store, only cells that are not in it are measured."""
    file, few = tmp_path / "cells.json", {"replays": [0], "rates": {"mild": 1e-3}}
    cell, at_once = continual.cells_of(plan.model_copy(update=few))
    Results(file, settings(plan, "base")).add(continual_cell.run(plan, cell, plan.methods))
    empty = planned_in(tmp_path / "store", place).model_copy(update=few)
    done = list(continual.measured(empty, Results(file, settings(empty, "base")), processes=1))
    assert [(where, [result.method for result in made]) for where, made in done] == [(at_once, ["all-at-once"])]
    assert len([note for note in notes(empty) if "train_loss" in note.read_text()]) == 1
