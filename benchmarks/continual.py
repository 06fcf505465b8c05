"""Continual learning, measured: strategies × learning rates × orders × seeds, one LoRA run after another.

python -m benchmarks.continual [--tasks DIR] [--model M] [--device cuda]
python -m benchmarks.continual --suite real --tasks DIR

DIR has TASK.train.jsonl and TASK.test.jsonl for each task, orders.json if the orders are not to be drawn, and
TASK.pool.jsonl for the base where no model is named. The suite `real` takes SmolLM2-135M and 100 rows of each task.
Results are kept in --cells, what was trained in --store: stopped, it goes on; with the cells alone, on any machine.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from backprop_core.data import curation, splits
from backprop_core.data.loading import snapshot
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.schema.refs import Batch, DatasetRef
from backprop_core.schema.specs import DatasetSpec, LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from benchmarks import continual_cell as cells
from benchmarks import continual_table as table
from benchmarks.continual_base import pool_base, recipe_of
from benchmarks.continual_cell import METHODS, Cell, Plan, Result
from benchmarks.continual_results import FOLDER, Results, settings
from benchmarks.smollm2 import smollm2

HERE = Path(__file__).parent
TASKS = HERE / "intents"
SUITES: dict[str, dict[str, Any]] = {
    "toy": {
        "rows": 300,
        "heldout": 120,
        "epochs": 5,
        "batch_size": 16,
        "rank": 8,
        "rates": {"mild": 1e-3, "stressed": 4e-3},
        "replays": [0, 20, 50, 0.05],
        "methods": list(METHODS),
    },
    "real": {
        "rows": 100,
        "heldout": 50,
        "epochs": 2,
        "batch_size": 4,
        "rank": 16,
        "rates": {"default": 5e-4},
        "replays": [0, 20, 50],
        "methods": ["sequential", "slao", "slao, A merged", "average of A and B"],
    },
}


def main() -> None:
    """Measure every cell that is not measured; what is done so far is kept after each."""
    asked = arguments(sys.argv[1:])
    plan, results = opened(asked)
    results.base = results.base or cells.base_scores(plan)
    results.add([])
    for cell, made in measured(plan, results, asked.processes):
        results.add(made)
        table.keep(plan, in_order(plan, results), results.base, asked.name)
        print(f"{cell}: {', '.join(one.method for one in made)}", file=sys.stderr, flush=True)
    table.keep(plan, in_order(plan, results), results.base, asked.name)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continual", description="Measure continual learning.")
    parser.add_argument("--suite", choices=list(SUITES), default="toy", help="what is measured (default: toy)")
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="the tasks (default: intents)")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="of these, in the order of the first one")
    parser.add_argument("--model", metavar="M", help="hub id or directory (default: the suite's own)")
    parser.add_argument("--store", type=Path, default=HERE / ".continual", metavar="DIR", help="what was trained")
    parser.add_argument("--cells", type=Path, metavar="FILE", help="what was measured (default: of these tasks)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--processes", type=int, default=2, help="on a CPU, with a thread each (default: 2)")
    parser.add_argument("--rows", type=int, help="training rows a task")
    parser.add_argument("--heldout", type=int, help="held-out rows a task")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="of these (default: all)")
    parser.add_argument("--replays", nargs="+", type=float, metavar="ROWS", help="of these (default: all)")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args(words)
    for name, value in SUITES[asked.suite].items():
        setattr(asked, name, value if (given := getattr(asked, name, None)) is None else given)
    if asked.tasks is None and asked.suite == "real":
        parser.error("--suite real needs --tasks DIR: its rows are not ours to ship")
    asked.tasks = asked.tasks or TASKS
    asked.name = name_of(asked)
    asked.cells = asked.cells or FOLDER / f"{asked.name}.json"
    return asked


def name_of(asked: argparse.Namespace) -> str:
    """What the files of the figures are called."""
    if asked.suite != "toy":
        return f"continual-{asked.suite}"
    return "continual" if asked.tasks.resolve() == TASKS else f"continual-{asked.tasks.resolve().name}"


def opened(asked: argparse.Namespace) -> tuple[Plan, Results]:
    """What is to be measured, and what is measured already."""
    plan = planned(asked)
    made_here = asked.model is None and asked.suite == "toy"  # its bits depend on the machine, what it learns does not
    base = recipe_of(asked.tasks) if made_here else plan.base.digest
    return plan, Results(asked.cells, settings(plan, base))


def planned(asked: argparse.Namespace) -> Plan:
    """What all cells have in common; the base is built where it is not there yet."""
    store = Store(asked.store)
    device = devices.resolve(asked.device)
    tasks = {dataset.task: dataset for dataset in datasets(asked, store)}
    return Plan(
        store=store.root,
        base=bases.resolve(ModelSpec(name=asked.model or str(base_of(asked, store))), store),
        device=device,
        tasks=tasks,
        orders=orders(asked, sorted(tasks)),
        rates=asked.rates,
        replays=asked.replays,
        seeds=asked.seeds,
        methods=asked.methods,
        training=TrainSpec(
            epochs=asked.epochs,
            batch_size=asked.batch_size,
            precision="bf16" if device == "cuda" else "fp32",
            device=device,
            checkpoint_seconds=600,
            lora=LoraSpec(rank=asked.rank, alpha=2 * asked.rank),
        ),
    )


def base_of(asked: argparse.Namespace, store: Store) -> Path:
    """The suite's own base."""
    return smollm2(store) if asked.suite == "real" else pool_base(asked.tasks, store)


def datasets(asked: argparse.Namespace, store: Store) -> Iterator[DatasetRef]:
    """Every task of the directory: training rows, first by hash, and its held-out rows."""
    scratch = store.scratch("tasks")
    for file in sorted(asked.tasks.glob("*.train.jsonl")):
        task = file.name.removesuffix(".train.jsonl")
        if asked.only and task not in asked.only:
            continue
        test = file.with_name(f"{task}.test.jsonl")
        spec = DatasetSpec(path=str(file))
        rows, heldout = (
            curation.curate(snapshot(str(one), scratch=scratch), spec, store=store) for one in (file, test)
        )
        batch = Batch(name=task, task=task, source=rows, heldout=heldout.rows, rows=asked.rows)
        yield from splits.split([batch], heldout_max=asked.heldout, store=store).datasets


def orders(asked: argparse.Namespace, tasks: list[str]) -> list[list[str]]:
    """The orders that the directory names, else the one that is asked for, rotated, else seeded ones."""
    file = asked.tasks / "orders.json"
    named: list[list[str]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    turned = [asked.only[turn:] + asked.only[:turn] for turn in range(len(asked.only or []))]
    drawn = [random.Random(seed).sample(tasks, len(tasks)) for seed in range(asked.orders)]
    return (turned or named or drawn)[: asked.orders]


def cells_of(plan: Plan) -> list[Cell]:
    """Every cell, seed by seed and order by order, so that a part of the work is a smaller table."""
    return [
        Cell(rate=rate, replay=replay, order=order, seed=seed)
        for seed in range(plan.seeds)
        for order, replay in [*blocks(plan)]
        for rate in plan.rates
    ]


def blocks(plan: Plan) -> Iterator[tuple[int | None, float]]:
    """Orders and replay of one seed; order None: all tasks at once, after the first order."""
    for order in range(len(plan.orders)):
        yield from ((order, replay) for replay in plan.replays)
        if order == 0:
            yield None, 0


def in_order(plan: Plan, results: Results) -> list[Result]:
    """The results as the table has them: without replay first, all at once between."""
    found = [result for cell in cells_of(plan) for result in results.every if result.cell == cell]
    rank = [*plan.methods, cells.AT_ONCE]
    return sorted(found, key=lambda result: (result.cell.replay, rank.index(result.method)))


def measured(plan: Plan, results: Results, processes: int) -> Iterator[tuple[Cell, list[Result]]]:
    """The missing results of every cell; in this process, or in several with a thread each."""
    todo = [(cell, results.missing(cells.methods_in(plan, cell), cell)) for cell in cells_of(plan)]
    if plan.device == "cuda" or processes == 1:
        every = ((cell, method) for cell, methods in todo for method in methods)
        yield from ((cell, cells.run(plan, cell, [method])) for cell, method in every)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [(cell, pool.submit(cells.run, plan, cell, methods)) for cell, methods in todo if methods]
        yield from ((cell, future.result()) for cell, future in futures)


if __name__ == "__main__":
    main()
