"""One cell of the benchmark: one learning rate, replay, order of the tasks and seed, every method.

A method is a merge. What it trains depends on where its runs start alone, so methods that agree in that share a
trajectory. Whatever is done is noted under its stage's key, so a run that was stopped goes on.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from backprop_core.schema.records import Record
from backprop_core.schema.refs import BaseRef, DatasetRef, GGUFRef, RowsRef
from backprop_core.schema.specs import DatasetSpec, MergeSpec, RunSpec, TrainSpec
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import stage_key
from backprop_core.worker.runner import Runner
from flows.steps.in_a_row import Scoring, at_once, in_a_row, replay_fields, under, value
from tasks.runs.flow_run import Run
from tasks.runs.outcome import Notes
from tasks.runs.prepared_run import Prepared

R = TypeVar("R", bound=BaseModel)


METHODS = {
    "sequential": MergeSpec(strategy="sequential"),
    "slao": MergeSpec(strategy="slao"),
    "slao without QR": MergeSpec(strategy="slao-plain"),
    "slao, A merged": MergeSpec(strategy="slao", merge_a=True),
    "slao, A merged, 1/2": MergeSpec(strategy="slao", merge_a=True, weight=0.5),
    "slao, 1/i": MergeSpec(strategy="slao", weight="1/i"),
    "slao, A merged, 1/i": MergeSpec(strategy="slao", merge_a=True, weight="1/i"),
    "average of A and B": MergeSpec(strategy="average"),
    "mean of ΔW": MergeSpec(strategy="delta"),
}
AT_ONCE = "all-at-once"
METRIC = "exact_match"


class Plan(Record):
    """What all cells have in common. `rates` are learning rates by name, `orders` the tasks' names.

    Of `replays` a number below 1 is a share of an earlier task's rows, another one how many rows of it.
    """

    store: Path
    base: BaseRef
    device: str
    tasks: dict[str, DatasetRef]
    orders: list[list[str]]
    rates: dict[str, float]
    replays: list[float]
    seeds: int
    training: TrainSpec
    methods: list[str]


class Cell(Record):
    """Where a result belongs; order None: all tasks at once."""

    rate: str
    replay: float
    order: int | None
    seed: int


class Result(Record):
    """Exact match of each task, in the order of training: right after its run, and after the last one."""

    method: str
    cell: Cell
    then: list[float]
    last: list[float]

    @property
    def average(self) -> float:
        return sum(self.last) / len(self.last)

    @property
    def learned(self) -> float:
        """Mean a[i,i]."""
        return sum(self.then) / len(self.then)

    @property
    def transfer(self) -> float:
        """Mean over all tasks but the last of a[T,t] - a[t,t]."""
        pairs = list(zip(self.last, self.then, strict=True))[:-1]
        return sum(last - then for last, then in pairs) / len(pairs)


def methods_in(plan: Plan, cell: Cell) -> list[str]:
    """What there is to measure in a cell."""
    return [AT_ONCE] if cell.order is None else plan.methods


def run(plan: Plan, cell: Cell, methods: Sequence[str]) -> list[Result]:
    """Some methods in one cell."""
    here, by = opened(plan), scoring(plan)
    order = [plan.tasks[name] for name in plan.orders[cell.order or 0]]
    fields = {"learning_rate": plan.rates[cell.rate], "seed": cell.seed, **replay_fields(cell.replay)}

    def result(method: str) -> Result:
        if cell.order is None:
            made = at_once(under(here, **fields), order, by)
        else:
            made = in_a_row(under(here, merge=METHODS[method], **fields), order, by)
        return Result(method=method, cell=cell, then=made.then, last=made.last)

    return [result(method) for method in methods]


def base_scores(plan: Plan) -> dict[str, float]:
    """The scores of the untouched base, by task."""
    here = opened(plan)
    return {name: value(here, None, name, scoring(plan)) for name in plan.tasks}


def scoring(plan: Plan) -> Scoring:
    heldout = {name: task.heldout for name, task in plan.tasks.items()}
    return Scoring(heldout, heldout, METRIC)


@cache
def opened_at(plan: str) -> Run:
    torch.set_num_threads(1)
    found = Plan.model_validate_json(plan)
    store = Store(found.store)
    spec = RunSpec(datasets=[DatasetSpec(path="-")], training=found.training)
    prepared = Prepared(flow="bench", spec=spec, base=found.base, sources=[], watch=[])
    return Run("0" * 32, prepared, store, InProcess(store), Notes())


def opened(plan: Plan) -> Run:
    """The run of this process, with the base in memory."""
    return opened_at(plan.model_dump_json())


class InProcess:
    """Calls stages in this process; what was done before is not done again."""

    def __init__(self, store: Store) -> None:
        self._store, self._runner = store, Runner(store, should_stop=lambda: False)

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        key = stage_key(stage.name, parameters)
        note = self._store.layout.cache / "notes" / key
        if note.is_file():
            return stage.result.model_validate_json(note.read_bytes())
        result: Any = self._runner.run(stage.name, key, parameters, lambda event: None)
        write_atomic(note, result.model_dump_json())
        found: R = result
        return found

    def serve(self, file: GGUFRef, heldout: RowsRef) -> dict[str, str]:
        raise NotImplementedError
