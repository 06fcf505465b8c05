"""The cells of `bench`: every setting with every order of the datasets and every seed."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

from backprop_core.data import stages as data
from backprop_core.schema.refs import BenchResult, BenchSetting, DatasetRef, RowsRef
from backprop_core.schema.specs import BenchSpec, RunSpec, merge_of, method_of
from flows.steps.in_a_row import Scoring, at_once, in_a_row, replay_fields, under, value
from flows.steps.rows import curated, held_out, part, rows_apart, with_rows
from tasks.runs.bench_figures import average, name, report, transfer
from tasks.runs.flow_run import Run

Rows = tuple[list[DatasetRef], dict[str, RowsRef]]


class Cell(NamedTuple):
    """A setting with an order, None for all datasets at once, and a seed."""

    setting: BenchSetting
    order: int | None
    seed: int

    @property
    def title(self) -> str:
        how = "all at once" if self.order is None else f"{name(self.setting)}, order {self.order}"
        return f"{how}, seed {self.seed}"


def compared(run: Run) -> None:
    """Measure every cell, and note the comparison after each."""
    spec = run.prepared.bench
    assert spec
    datasets, heldout = rows_of_the_line(run) if run.prepared.live else own_rows(run)
    datasets = shortened(run, datasets, spec.rows)
    present = present_setting(run.spec)
    by = Scoring(heldout, scored(run, heldout, datasets, settings(spec, present)), run.spec.evaluation.metric)
    base = {task: value(run, None, task, by) for task in dict.fromkeys(one.tasks[0] for one in datasets)}
    orders = orders_of(datasets, spec.orders)
    named = [[dataset.name for dataset in order] for order in orders]
    results: list[BenchResult] = []
    every = list(cells(spec, present, len(orders), run.spec.training.seed))
    run.ahead([partial(measured, cell=cell, present=present, order=orders[cell.order or 0], by=by) for cell in every])
    for number, cell in enumerate(every):
        with run.notes.cell(number, cell.title, parameters(cell)):
            order = orders[cell.order or 0]
            results.append(measured(run, cell, present, order, by))
            figures = {"average": average(results[-1]), "backward_transfer": transfer(results[-1])}
            known = {key: figure for key, figure in figures.items() if figure is not None}
            run.notes.compared(report(by.metric, named, present, base, results), known)


def own_rows(run: Run) -> Rows:
    """The run's own datasets, and the rows that score them."""
    rows = curated(run)
    return rows.datasets, held_out(run, rows)


def rows_of_the_line(run: Run) -> Rows:
    """The datasets that a line has learned, in their order, and the rows that score them."""
    assert run.prepared.live
    version = run.prepared.live.version
    trained = {task for dataset in version.datasets for task in dataset.tasks}
    datasets = [with_rows(run, dataset, dataset.train) for dataset in version.datasets]
    return datasets, {task: rows for task, rows in version.heldout.items() if task in trained}


def scored(
    run: Run, heldout: dict[str, RowsRef], datasets: Sequence[DatasetRef], compared: list[BenchSetting]
) -> dict[str, RowsRef]:
    """The rows that score all settings: without those by which one of them searches or backs off."""
    if any(merge_of(setting.strategy).searches for setting in compared):
        return {task: rows_apart(run, rows, to_choose_by=False) for task, rows in heldout.items()}
    return part(run, heldout, datasets, to_choose_by=False)


def shortened(run: Run, datasets: Sequence[DatasetRef], most: int | None) -> list[DatasetRef]:
    """The first rows of each dataset."""
    if most is None:
        return list(datasets)
    rows = [run.call(data.first, rows=one.train, most=most) if one.train.rows > most else one.train for one in datasets]
    return [with_rows(run, one, few) for one, few in zip(datasets, rows, strict=True)]


def present_setting(spec: RunSpec) -> BenchSetting:
    """What the run would do by itself."""
    training = spec.training
    replay = training.replay_rows or training.replay
    return BenchSetting(strategy=method_of(spec.merge), replay=replay, rate=training.learning_rate)


def orders_of(datasets: Sequence[DatasetRef], most: int) -> list[list[DatasetRef]]:
    """The given order, and others by chance, each once."""
    found = [list(datasets)]
    for seed in range(10 * most):
        drawn = random.Random(seed).sample(list(datasets), len(datasets))
        if len(found) < most and drawn not in found:
            found.append(drawn)
    return found


def settings(spec: BenchSpec, present: BenchSetting) -> list[BenchSetting]:
    """The present setting, then every combination."""
    every = product(spec.rates or [present.rate], spec.replay, spec.strategies)
    made = [BenchSetting(strategy=strategy, replay=replay, rate=rate) for rate, replay, strategy in every]
    return list(dict.fromkeys([present, *made]))


def cells(spec: BenchSpec, present: BenchSetting, orders: int, seed: int) -> Iterator[Cell]:
    """Every cell, order by order, so that a part of the work is a smaller table."""
    for number in range(spec.seeds):
        for order in range(orders):
            yield from (Cell(setting, order, seed + number) for setting in settings(spec, present))
            if order == 0:
                yield Cell(present, None, seed + number)


def parameters(cell: Cell) -> dict[str, str]:
    """What tells a cell from others in MLflow."""
    merge = merge_of(cell.setting.strategy)
    return {
        "merge.strategy": merge.strategy,
        "merge.merge_a": str(merge.merge_a),
        "merge.lambda": str(merge.weight),
        "bench.replay": f"{cell.setting.replay:g}",
        "training.learning_rate": f"{cell.setting.rate:g}",
        "training.seed": str(cell.seed),
        "bench.order": "all at once" if cell.order is None else str(cell.order),
    }


def measured(run: Run, cell: Cell, present: BenchSetting, order: Sequence[DatasetRef], by: Scoring) -> BenchResult:
    """One cell."""
    changes = {} if cell.setting == present else changes_of(cell.setting, run.spec)
    here = under(run, seed=cell.seed, **changes)
    made = (at_once if cell.order is None else in_a_row)(here, order, by)
    return BenchResult(
        setting=cell.setting,
        order=cell.order,
        seed=cell.seed,
        tasks=[dataset.tasks[0] for dataset in order],
        then=made.then,
        last=made.last,
        seconds=made.seconds,
    )


def changes_of(setting: BenchSetting, present: RunSpec) -> dict[str, object]:
    """The fields of a run that a setting decides. A rate that is set is that of later runs too."""
    own = present.training.learning_rate
    rate = {} if setting.rate == own else {"learning_rate": setting.rate, "later_learning_rate": None}
    merge = merge_of(setting.strategy).model_copy(update={"back_off": present.merge.back_off})
    return {"merge": merge, **rate, **replay_fields(setting.replay)}
