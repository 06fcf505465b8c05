"""Continual learning, measured: strategies × learning rates × orders × seeds, one LoRA run after another.

python -m benchmarks.continual [--tasks DIR] [--model M] [--device cuda]

DIR has TASK.train.jsonl and TASK.test.jsonl for each task, orders.json if the orders are not to be drawn, and
TASK.pool.jsonl for the base where no model is named. What was done is kept in --store: stopped, it goes on.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from backprop_core.data import curation, splits
from backprop_core.data.loading import snapshot
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.schema.refs import Batch, DatasetRef
from backprop_core.schema.specs import DatasetSpec, LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from benchmarks import continual_cell as cells
from benchmarks import continual_table as table
from benchmarks.continual_base import pool_base
from benchmarks.continual_cell import Cell, Plan, Result

HERE = Path(__file__).parent
TASKS = HERE / "intents"


def main() -> None:
    """Measure every cell; what is done so far is kept after each."""
    asked = arguments(sys.argv[1:])
    plan = planned(asked)
    base, results = base_scores(plan), list[Result]()
    for done, (cell, made) in enumerate(measured(plan, asked.processes), 1):
        results += made
        if done % len(plan.rates) == 0:  # the table has them side by side
            table.keep(plan, results, base, asked.tasks)
        print(f"{done} of {len(cells_of(plan))}: {cell}", file=sys.stderr, flush=True)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continual", description="Measure continual learning.")
    parser.add_argument("--tasks", type=Path, default=TASKS, metavar="DIR", help="the tasks (default: intents)")
    parser.add_argument("--model", metavar="M", help="hub id or directory (default: one built from the pool rows)")
    parser.add_argument("--store", type=Path, default=HERE / ".continual", metavar="DIR", help="where it is kept")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--processes", type=int, default=2, help="on a CPU, with a thread each (default: 2)")
    parser.add_argument("--rows", type=int, default=300, help="training rows a task (default: 300)")
    parser.add_argument("--heldout", type=int, default=120, help="held-out rows a task (default: 120)")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--mild", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    parser.add_argument("--stressed", type=float, default=4e-3, help="learning rate (default: 4e-3)")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args(words)


def planned(asked: argparse.Namespace) -> Plan:
    """What all cells have in common; the base is built where it is not there yet."""
    store = Store(asked.store)
    device = devices.resolve(asked.device)
    name = asked.model or str(pool_base(asked.tasks, store))
    tasks = {dataset.task: dataset for dataset in datasets(asked, store)}
    return Plan(
        store=store.root,
        base=bases.resolve(ModelSpec(name=name), store),
        device=device,
        tasks=tasks,
        orders=orders(asked, sorted(tasks)),
        rates={"mild": asked.mild, "stressed": asked.stressed},
        replays=[0, 0.05],
        seeds=asked.seeds,
        training=TrainSpec(
            epochs=asked.epochs,
            batch_size=asked.batch_size,
            precision="bf16" if device == "cuda" else "fp32",
            device=device,
            checkpoint_seconds=600,
            lora=LoraSpec(rank=asked.rank, alpha=2 * asked.rank),
        ),
    )


def datasets(asked: argparse.Namespace, store: Store) -> Iterator[DatasetRef]:
    """Every task of the directory: training rows, first by hash, and its held-out rows."""
    scratch = store.scratch("tasks")
    for file in sorted(asked.tasks.glob("*.train.jsonl")):
        task = file.name.removesuffix(".train.jsonl")
        test = file.with_name(f"{task}.test.jsonl")
        spec = DatasetSpec(path=str(file))
        rows, heldout = (
            curation.curate(snapshot(str(one), scratch=scratch), spec, store=store) for one in (file, test)
        )
        batch = Batch(name=task, task=task, source=rows, heldout=heldout.rows, rows=asked.rows)
        yield from splits.split([batch], heldout_max=asked.heldout, store=store).datasets


def orders(asked: argparse.Namespace, tasks: list[str]) -> list[list[str]]:
    """The orders that the directory names, else seeded ones."""
    file = asked.tasks / "orders.json"
    named: list[list[str]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    drawn = [random.Random(seed).sample(tasks, len(tasks)) for seed in range(asked.orders)]
    return (named or drawn)[: asked.orders]


def cells_of(plan: Plan) -> list[Cell]:
    """Every cell, without replay first and seed by seed, so that a part of the work is a smaller table."""
    orders = range(len(plan.orders))
    return [
        Cell(rate=rate, replay=replay, order=order, seed=seed)
        for replay in plan.replays
        for seed in range(plan.seeds)
        for order in ([*orders] if replay else [*orders, None])
        for rate in plan.rates
    ]


def measured(plan: Plan, processes: int) -> Iterator[tuple[Cell, list[Result]]]:
    """The results of every cell; on a GPU in this process, on a CPU in several with a thread each."""
    if plan.device == "cuda":
        yield from ((cell, cells.run(plan, cell)) for cell in cells_of(plan))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [(cell, pool.submit(cells.run, plan, cell)) for cell in cells_of(plan)]
        yield from ((cell, future.result()) for cell, future in futures)


def base_scores(plan: Plan) -> dict[str, float]:
    """Exact match of the untouched base, by task."""
    bench = cells.opened(plan)
    return {task: bench.score(None, task) for task in plan.tasks}


if __name__ == "__main__":
    main()
