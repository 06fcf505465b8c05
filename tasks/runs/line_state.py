"""Continues a line: its lock, the champion a run starts from, and the new version; `backprop lines`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import TypedDict

from backprop_core.lines.prune import sizes
from backprop_core.lines.renaming import check_begins
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.publishing.release_transaction import released
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import AdapterRef, Cell, DatasetRef, RowsRef, TrainResult, heldout_of
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import held
from tasks.runs import worker_process

if TYPE_CHECKING:
    from tasks.runs.flow_run import Run
    from tasks.runs.outcome import Outcome

log = logging.getLogger(__name__)


class LineSummary(TypedDict):
    """One line in the list of lines."""

    line: str
    champion: int | None
    versions: list[int]
    tasks: list[str]
    runs: int | None
    base: str
    run_id: str
    adapter: str
    live: list[str]  # where the champion is published: Ollama models, Hub repositories
    bytes: int  # of all its versions
    by_hand: str | None  # manual promotion of the champion: who and why


@contextmanager
def working_on(line: str) -> Iterator[None]:
    """Hold the line's lock: only one run at a time continues a line; others wait, then continue from its result.

    Before waiting, gives up a worker that was started early: the run that has the line may need its device. First
    finishes or undoes an interrupted release. Raises ConfigInvalid for the old name of a line that is being renamed.
    """
    from tasks.stages.publishing import recover

    store = Store(settings().store_path)
    lock = store.lock(f"line-{line}")
    with held(lock, f"another run is working on line {line}", before=worker_process.give_up):
        recover(line)
        check_begins(line, store)
        yield


def next_number(line: str) -> int:
    """The number of a line's next version."""
    return max(Lines(Store(settings().store_path)).versions(line), default=0) + 1


def has_champion(line: str) -> bool:
    """Whether the line has a champion."""
    return Lines(Store(settings().store_path)).champion(line) is not None


class Made(NamedTuple):
    """The result of the LoRA runs so far."""

    datasets: list[DatasetRef]
    heldout: dict[str, RowsRef]
    tuned: TrainResult
    earlier: list[AdapterRef]
    merged: AdapterRef
    cells: dict[str, Cell]
    aside: dict[str, RowsRef]
    scored: dict[str, RowsRef]

    @property
    def last_heldout(self) -> RowsRef:
        """The held-out rows of the last dataset's task."""
        return heldout_of(self.datasets[-1].task, self.heldout)


def version_of(run: "Run", outcome: "Outcome", made: Made) -> LineVersion:
    """The run's result as a new version of the line: with tasks, held-out rows and learned rows.

    The line keeps its merge strategy. The count of a promoted adapter covers the datasets of its own run only.
    """
    live = run.prepared.live.version if run.prepared.live else None
    retrained = run.prepared.flow == "retrain"
    before = live if live and live.base.digest == run.base.digest else None  # else all were trained anew
    known = before.datasets if before else []
    learned = {(dataset.task, dataset.train.digest) for dataset in known}
    strategy = live.merge if live and not retrained else run.spec.merge
    return LineVersion(
        run_id=run.run_id,
        base=run.base,
        lora=run.spec.training.lora.committed,
        merge=strategy,
        tuned=made.tuned.adapter,
        earlier=made.earlier if strategy.takes_all else [],
        merged=made.merged,
        count=live.count + 1 if live and retrained else len(made.datasets),
        datasets=[*known, *(one for one in made.datasets if (one.task, one.train.digest) not in learned)],
        heldout=made.heldout,
        aside=made.aside,
        scores={task: cell.scores for task, cell in made.cells.items()},
        ratings={task: cell.rating for task, cell in made.cells.items() if cell.rating},
        watch=run.prepared.watched,
        parent=run.prepared.live.number if run.prepared.live else None,
        scored={task: rows for task, rows in made.scored.items() if rows != made.heldout[task]},
        replay_rows=live.replay_rows if live else run.spec.training.replay_rows or None,
        general=list(dict.fromkeys([*(before.general if before else []), *outcome.made.general])),
        gate=outcome.made.gate,
        act=outcome.made.act,
    )


def summaries(config: Settings) -> list[LineSummary]:
    """All lines of the store, by name."""
    store = Store(config.store_path)
    return [summary(store, name, taken) for name, taken in sizes(store)]


def summary(store: Store, name: str, taken: int) -> LineSummary:
    lines = Lines(store)
    live, versions = lines.live(name), lines.versions(name)
    version = live.version if live else lines.version(name, versions[-1])
    act = lines.act(name, live.number) if live else None
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
        by_hand=act.sentence if act else None,
    )


def places(store: Store, line: str, number: int) -> list[str]:
    """Where a version was published."""
    known = released(line, number, store)
    if known is None:
        return []
    ollama = [f"ollama {known.publish.ollama}:v{number}"] if known.publish.ollama else []
    return ollama + ([f"hub {known.publish.repo}@{(known.commit or '')[:12]}"] if known.publish.repo else [])
