"""A line as it goes on: one run at a time, from champion to version; and what lines there are."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

from backprop_core.lines import Lines, LineVersion
from backprop_core.locks import held
from backprop_core.prune import sizes
from backprop_core.refs import AdapterRef, Cell, DatasetRef, RowsRef, TrainResult
from backprop_core.release import released
from backprop_core.settings import Settings, settings
from backprop_core.store import Store
from tasks import worker

if TYPE_CHECKING:
    from tasks.run import Run

log = logging.getLogger(__name__)


class LineSummary(TypedDict):
    """A line in a list."""

    line: str
    champion: int | None
    versions: list[int]
    tasks: list[str]
    runs: int | None
    base: str
    run_id: str
    adapter: str
    live: list[str]  # where the champion is used: models of Ollama's, repositories of the Hub
    bytes: int  # of all that its versions name


@contextmanager
def working_on(line: str) -> Iterator[None]:
    """One run at a time continues a line; a second one waits, then goes on from what the first has made.

    A worker that was started early is given up before the wait: who has the line may be waiting for its device. A
    release that was interrupted is finished or undone first.
    """
    from tasks.publishing import recover

    lock = Store(settings().store_path).lock(f"line-{line}")
    with held(lock, f"another run is working on line {line}", before=worker.give_up):
        recover(line)
        yield


def next_number(line: str) -> int:
    """The number that a line's next version gets."""
    return max(Lines(Store(settings().store_path)).versions(line), default=0) + 1


def version_of(
    run: "Run",
    datasets: list[DatasetRef],
    heldout: dict[str, RowsRef],
    tuned: TrainResult,
    history: list[AdapterRef],
    merged: AdapterRef,
    cells: dict[str, Cell],
    aside: dict[str, RowsRef],
) -> LineVersion:
    """What the run made, as a version; that of a retrain continues the champion it started from."""
    live = run.prepared.live if run.prepared.flow == "retrain" else None
    datasets = [*live.version.datasets, *datasets] if live else datasets
    return LineVersion(
        run_id=run.run_id,
        base=run.base,
        lora=run.spec.training.lora.committed,
        merge=run.spec.merge,
        tuned=tuned.adapter,
        earlier=history if run.spec.merge.takes_all else [],
        merged=merged,
        count=len(datasets),
        datasets=datasets,
        heldout=heldout,
        aside=aside,
        scores={task: cell.scores for task, cell in cells.items()},
        ratings={task: cell.rating for task, cell in cells.items() if cell.rating},
        watch=run.watched,
        parent=live.number if live else None,
    )


def summaries(config: Settings) -> list[LineSummary]:
    """Every line of the store, by name."""
    store = Store(config.store_path)
    return [summary(store, name, taken) for name, taken in sizes(store)]


def summary(store: Store, name: str, taken: int) -> LineSummary:
    lines = Lines(store)
    live, versions = lines.live(name), lines.versions(name)
    version = live.version if live else lines.version(name, versions[-1])
    return LineSummary(
        line=name,
        champion=live.number if live else None,
        versions=versions,
        tasks=list(version.heldout),
        runs=version.count,
        base=version.base.name,
        run_id=version.run_id,
        adapter=version.merged.digest,
        live=places(store, name, live.number) if live else [],
        bytes=taken,
    )


def places(store: Store, line: str, number: int) -> list[str]:
    """Where a version went when it went live."""
    known = released(line, number, store)
    if known is None:
        return []
    ollama = [f"ollama {known.publish.ollama}:v{number}"] if known.publish.ollama else []
    return ollama + ([f"hub {known.publish.repo}@{(known.commit or '')[:12]}"] if known.publish.repo else [])
