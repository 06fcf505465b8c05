"""The output of `backprop demo`: what each way of training kept, the files, and the next commands."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from backprop_core.schema.refs import RunResult
from flows.cli import run_text, tables

PLOT = """
A shop's facts change: requests go to other teams, products get other colours, depots move, answers are reworded.
Four datasets arrive one after another, and a small model learns each in a LoRA run of its own.
How much of each does it still know? Share of exact answers on held-out rows, in %, after each run;
`general` are skills of the base that no run trains.
"""


def story(merged: RunResult, sequential: RunResult) -> RenderableType:
    """The demo's two runs side by side, the files, and the next commands."""
    return Group(
        PLOT,
        *matrix("one run after another, nothing else", sequential),
        "",
        *matrix("the same runs, merged by SLAO", merged),
        "",
        Text("Files of the merged adapter", style="bold"),
        *run_text.files_of(merged),
        "",
        Text("Next steps", style="bold"),
        *next_steps(merged),
    )


def matrix(title: str, result: RunResult) -> Iterator[RenderableType]:
    """The forgetting matrix in exact answers, and its averages."""
    evaluation = result.evaluation
    assert evaluation is not None
    yield Text(title, style="bold")
    table: Table = tables.table("after", *evaluation.tasks, right=evaluation.tasks)
    table.add_row("base", *map(percent, evaluation.base_exact_match))
    for run, row in zip(result.runs, evaluation.exact_match, strict=True):
        table.add_row(run.dataset.task, *map(percent, row))
    yield table
    assert evaluation.backward_transfer is not None
    lost = percent(-evaluation.backward_transfer)
    yield f"average of the four {percent(evaluation.average)}, lost since learned {lost}"


def percent(share: float | None) -> str:
    """A share as a whole percentage; empty for a missing cell."""
    return "" if share is None else f"{100 * share:.0f}"


def next_steps(result: RunResult) -> Iterator[str]:
    yield f"  backprop show-run {result.run_id[:12]}        the recorded run"
    yield "  backprop list-runs                    the history"
    yield f"  mlflow ui --backend-store-uri {mlflow_uri()}    curves and plots in a browser"
    yield "  backprop train --model Qwen/Qwen2.5-7B-Instruct --data FILE.jsonl --export q4_k_m    your own, on a GPU"


def mlflow_uri() -> str:
    """The address of the history."""
    from backprop_core.runtime.settings import settings
    from tasks.tracking import tracking_uri

    return tracking_uri(settings())
