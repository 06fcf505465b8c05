"""One cell of the benchmark: one learning rate, share of replay, order of the tasks and seed, every method.

A method is a merge. What it trains depends on where its runs start alone, so methods that agree in that share a
trajectory. Whatever is done is noted under its stage's key, so a run that was stopped goes on.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from backprop_core.data import row_sets
from backprop_core.data.batching import Item, load
from backprop_core.evaluation.scoring import score
from backprop_core.merging.strategies import merge
from backprop_core.models import base as bases
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.models.loading import load as load_base
from backprop_core.schema.records import Record
from backprop_core.schema.refs import AdapterRef, BaseRef, DatasetRef, RowsRef, Start, TrainResult
from backprop_core.schema.specs import MergeSpec, TrainSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import stage_key
from backprop_core.training.loop import train

R = TypeVar("R", bound=BaseModel)


METHODS = {
    "sequential": MergeSpec(strategy="sequential"),
    "slao": MergeSpec(strategy="slao"),
    "slao without QR": MergeSpec(strategy="slao-plain"),
    "slao, A merged": MergeSpec(strategy="slao", merge_a=True),
    "slao, 1/i": MergeSpec(strategy="slao", weight="1/i"),
    "slao, A merged, 1/i": MergeSpec(strategy="slao", merge_a=True, weight="1/i"),
    "average of A and B": MergeSpec(strategy="average"),
    "mean of ΔW": MergeSpec(strategy="delta"),
}
AT_ONCE = "all-at-once"


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


class Score(Record):
    exact_match: float


def methods_in(plan: Plan, cell: Cell) -> list[str]:
    """What there is to measure in a cell."""
    return [AT_ONCE] if cell.order is None else plan.methods


def run(plan: Plan, cell: Cell, methods: Sequence[str]) -> list[Result]:
    """Some methods in one cell."""
    bench = opened(plan)
    if cell.order is None:
        last = bench.at_once(cell)
        return [Result(method=AT_ONCE, cell=cell, then=last, last=last)]
    return [bench.result(cell, name, METHODS[name]) for name in methods]


@cache
def opened_at(plan: str) -> "Bench":
    return Bench(Plan.model_validate_json(plan))


def opened(plan: Plan) -> "Bench":
    """The bench of this process, with the base in memory."""
    return opened_at(plan.model_dump_json())


class Bench:
    """The core's functions on one loaded base; what was done before is not done again."""

    def __init__(self, plan: Plan) -> None:
        torch.set_num_threads(1)
        self.plan, self.store = plan, Store(plan.store)
        precision = plan.training.precision
        assert precision != "auto", "resolved with the plan"
        self.base: LoadedBase = load_base(bases.local(plan.base, self.store), precision=precision, device=plan.device)
        self._items: dict[str, list[Item]] = {}

    def noted(self, stage: str, kind: type[R], make: Callable[[str], R], **parameters: Any) -> R:
        """What `make` gives, or gave before with these parameters."""
        key = stage_key(stage, parameters)
        note = self.store.layout.cache / "notes" / key
        if note.is_file():
            return kind.model_validate_json(note.read_bytes())
        result = make(key)
        write_atomic(note, result.model_dump_json())
        return result

    def train(self, rows: RowsRef, *, spec: TrainSpec, start: Start | None) -> AdapterRef:
        def make(key: str) -> TrainResult:
            return train(
                self.base,
                rows,
                spec=spec,
                start=start,
                key=key,
                store=self.store,
                on_metrics=lambda *_: None,
                should_stop=lambda: False,
            )

        return self.noted("train", TrainResult, make, base=self.plan.base, rows=rows, spec=spec, start=start).adapter

    def mixed(self, rows: RowsRef, earlier: list[RowsRef], share: float, passes: int, seed: int) -> RowsRef:
        def make(_: str) -> RowsRef:
            return row_sets.replay(rows, earlier, heldout=[], share=share, passes=passes, seed=seed, store=self.store)

        return self.noted("replay", RowsRef, make, rows=rows, earlier=earlier, share=share, passes=passes, seed=seed)

    def merge(
        self, merged: AdapterRef | None, tuned: AdapterRef, earlier: list[AdapterRef], count: int, spec: MergeSpec
    ) -> AdapterRef:
        def make(_: str) -> AdapterRef:
            return merge(merged, tuned, earlier=earlier, count=count, spec=spec, store=self.store)

        return self.noted(
            "merge", AdapterRef, make, merged=merged, tuned=tuned, earlier=earlier, count=count, spec=spec
        )

    def score(self, adapter: AdapterRef | None, task: str) -> float:
        """Exact match of an adapter, or of the base, on a task's held-out rows."""
        heldout = self.plan.tasks[task].heldout
        if task not in self._items:
            self._items[task] = load(self.base, heldout, max_length=self.plan.training.max_length, store=self.store)

        def make(_: str) -> Score:
            with adapted(self.base, adapter, self.store):
                rows = score(self.base, self._items[task])
            return Score(exact_match=sum(row.exact for row in rows) / len(rows))

        return self.noted("evaluate", Score, make, base=self.plan.base, adapter=adapter, heldout=heldout).exact_match

    def result(self, cell: Cell, name: str, spec: MergeSpec) -> Result:
        """One method: train the tasks in their order, merge after each, score."""
        assert cell.order is not None
        order = self.plan.orders[cell.order]
        tuned = self.trajectory(cell, order, spec)
        merged: list[AdapterRef] = []
        for index, adapter in enumerate(tuned):
            earlier = tuned[:index] if spec.takes_all else []
            before = merged[-1] if merged else None
            merged.append(self.merge(before, adapter, earlier, index + 1, spec))
        return Result(
            method=name,
            cell=cell,
            then=[self.score(adapter, task) for adapter, task in zip(merged, order, strict=True)],
            last=[self.score(merged[-1], task) for task in order],
        )

    def trajectory(self, cell: Cell, order: Sequence[str], merge: MergeSpec) -> list[AdapterRef]:
        """The tuned adapter of each run."""
        tuned: list[AdapterRef] = []
        spec = self.plan.training.model_copy(update={"learning_rate": self.plan.rates[cell.rate], "seed": cell.seed})
        datasets = [self.plan.tasks[task].train for task in order]
        for index, rows in enumerate(datasets):
            if cell.replay and index:
                share = cell.replay if cell.replay < 1 else cell.replay / max(one.rows for one in datasets)
                rows = self.mixed(rows, datasets[:index], share, math.ceil(spec.epochs), cell.seed)
            start = (
                Start(tuned=tuned[-1], orthonormal=merge.orthonormal_start, keep=merge.keeps_function)
                if tuned
                else None
            )
            tuned.append(self.train(rows, spec=spec, start=start))
        return tuned

    def at_once(self, cell: Cell) -> list[float]:
        """One run on the rows of all tasks."""
        first, *others = [self.plan.tasks[task].train for task in self.plan.orders[0]]
        rows = self.mixed(first, others, 1.0, 1, 0)
        spec = self.plan.training.model_copy(update={"learning_rate": self.plan.rates[cell.rate], "seed": cell.seed})
        adapter = self.train(rows, spec=spec, start=None)
        return [self.score(adapter, task) for task in self.plan.orders[0]]
