"""Reads the run history from MLflow, for `list-runs` and `show-run`."""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from backprop_core.errors import RefAmbiguous, RunUnknown
from backprop_core.runtime.redaction import blank_address
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import RunId, RunResult, Status
from backprop_core.store.layout import JournalLayout
from tasks.tracking import own_database
from tasks.tracking.connection import LINE, PAGE, answering, connect, experiments, is_own, tracking_uri
from tasks.tracking.journal import SECONDS, ending
from tasks.tracking.record import DATASETS, ERROR, ROOT, RUN_ID, STATUS
from tasks.tracking.run_filter import RunFilter
from tasks.tracking.sender import sync

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENTS = RunFilter()


class RunSummary(TypedDict):
    """One run in the history."""

    run_id: str
    line: str
    status: str
    started: str  # ISO 8601, UTC
    seconds: float | None  # at work, without waits for a person or the device; None while it runs
    datasets: list[str]
    average: float | None  # last row of the matrix
    error: str | None  # code


class ExportedRun(RunSummary):
    """One run with its parameters and its last metrics."""

    mlflow_run_id: str
    params: dict[str, str]
    metrics: dict[str, float]


Sort = Literal["started", "took", "average", "line", "status"]
ORDERS: Mapping[Sort, Callable[[RunSummary], Any]] = {  # runs without a figure last
    "took": lambda run: math.inf if run["seconds"] is None else -run["seconds"],
    "average": lambda run: math.inf if run["average"] is None else -run["average"],
    "line": lambda run: run["line"],
    "status": lambda run: run["status"],
}


def list_runs(
    settings: Settings, wanted: RunFilter = PARENTS, limit: int = 50, sort: Sort = "started"
) -> list[RunSummary]:
    """The first runs that match, newest first or in another order. Raises MLflowUnreachable."""
    if sort == "started":
        return summaries(settings, wanted, limit)
    return sorted(summaries(settings, wanted, sys.maxsize), key=ORDERS[sort])[:limit]


def summaries(settings: Settings, wanted: RunFilter, limit: int) -> list[RunSummary]:
    """The newest runs that match, newest first: from the home's database, or else from MLflow."""
    sync(settings)
    stored = own_database.runs(settings, wanted, limit)
    if stored is not None:
        journals = settings.layout.journal
        return [summary(run.tags, run.metrics, run.start, run.end, journals) for run in stored]
    history = History(settings)
    return [history.summary(run) for run in history.runs(wanted.in_mlflow(), limit)]


def status_of(settings: Settings, prefix: str) -> Status:
    """The status of a run. Raises RunUnknown, RefAmbiguous, MLflowUnreachable."""
    history = History(settings)
    return history.state(history.find(prefix))[0]


def document_of(settings: Settings, prefix: str, name: str) -> tuple[RunId, Any]:
    """The full run_id of a run, and one of its JSON documents; None if it has no such one.

    Raises RunUnknown, RefAmbiguous, MLflowUnreachable.
    """
    history = History(settings)
    run = history.find(prefix)
    return run.data.tags[RUN_ID], history.document(run, name)


def exported(settings: Settings, wanted: RunFilter) -> Iterator[ExportedRun]:
    """All runs that match with their parameters and last metrics. Raises MLflowUnreachable."""
    history = History(settings)
    for run in history.runs(wanted.in_mlflow(), sys.maxsize):
        params, metrics = dict(sorted(run.data.params.items())), dict(sorted(finite(run.data.metrics).items()))
        yield ExportedRun(**history.summary(run), mlflow_run_id=run.info.run_id, params=params, metrics=metrics)


def show_run(settings: Settings, prefix: str) -> RunResult:
    """The result of the one run whose run_id starts with `prefix`, or that has this id in MLflow.

    A child run shows the run that it belongs to; a run without a result shows its spec and its state.
    Raises RunUnknown, RefAmbiguous, MLflowUnreachable.
    """
    history = History(settings)
    return history.result(history.find(prefix))


class History:
    """The runs of our namespace, as MLflow has them after the journals were sent."""

    def __init__(self, settings: Settings) -> None:
        sync(settings)
        self.settings = settings
        self.address = blank_address(tracking_uri(settings))
        self._experiments: list[str] = []
        if is_empty(settings):
            return
        self.client = connect(settings)
        with answering(settings):
            self._experiments = experiments(self.client, settings)

    def runs(self, condition: str, limit: int) -> "Iterator[Run]":
        """Runs that match a condition, newest first."""
        token = None
        while self._experiments and limit > 0:
            with answering(self.settings):
                page = self.client.search_runs(
                    self._experiments, condition, max_results=min(limit, PAGE), page_token=token
                )
            yield from page
            limit, token = limit - len(page), page.token
            if not token:
                return

    def find(self, prefix: str) -> "Run":
        """Find the root run by a prefix of its run_id, or by its MLflow id."""
        found = [*self.runs(f"tags.`{RUN_ID}` LIKE '{escaped(prefix)}%'", 20)]
        found = found or [*self.runs(f"attributes.run_id = '{escaped(prefix)}'", 1)]
        roots = sorted({run.data.tags[ROOT] for run in found if ROOT in run.data.tags})
        if not roots:
            raise RunUnknown(f"no run {prefix}", hint="`backprop list-runs` lists all runs")
        if len(roots) > 1:
            raise RefAmbiguous(f"{prefix} could be {', '.join(roots)}", hint="use more digits")
        return next(self.runs(f"tags.`{RUN_ID}` = '{roots[0]}'", 1))

    def result(self, run: "Run") -> RunResult:
        """The run's result.json if its status is current, else a result from tags and spec alone."""
        tags, known = run.data.tags, {"mlflow_run_id": run.info.run_id}
        status = self.state(run)[0]
        names = self._names(run)
        if "result.json" in names:
            result = RunResult.model_validate(self._document(run, "result.json"))
            if result.status == status:
                return result.model_copy(update=known)
        spec = self._document(run, "spec.json") if "spec.json" in names else {}
        return RunResult.model_validate(
            {"run_id": tags[RUN_ID], "line": tags[LINE], "status": status, "spec": spec, **known}
        )

    def state(self, run: "Run") -> tuple[Status, float | None]:
        """A run's status, and the seconds that it worked, without waits; None while it runs."""
        return state(run.data.tags, run.info.start_time, run.info.end_time, self.settings.layout.journal)

    def summary(self, run: "Run") -> RunSummary:
        """A run in the list."""
        times = run.info.start_time, run.info.end_time
        return summary(run.data.tags, run.data.metrics, *times, self.settings.layout.journal)

    def document(self, run: "Run", name: str) -> Any:
        """A JSON document of a run; None if it has no such one."""
        return self._document(run, name) if name in self._names(run) else None

    def _names(self, run: "Run") -> set[str]:
        with answering(self.settings):
            return {artifact.path for artifact in self.client.list_artifacts(run.info.run_id)}

    def _document(self, run: "Run", name: str) -> Any:
        with tempfile.TemporaryDirectory() as directory, answering(self.settings):
            return json.loads(Path(self.client.download_artifacts(run.info.run_id, name, directory)).read_text("utf-8"))


def state(tags: Mapping[str, str], start: int, end: int | None, journals: JournalLayout) -> tuple[Status, float | None]:
    """A run's status, and the seconds that it worked, without waits; None while it runs. Times are in ms.

    If MLflow does not have the run's end, this machine's journal is read.
    """
    status: Any = tags.get(STATUS, "running")
    if status != "running":
        return status, float(tags[SECONDS]) if SECONDS in tags else ((end or start) - start) / 1000
    known = ending(journals, tags[ROOT], tags[RUN_ID])
    return (known.status, known.seconds) if known else (status, None)


def summary(
    tags: Mapping[str, str], metrics: Mapping[str, float], start: int, end: int | None, journals: JournalLayout
) -> RunSummary:
    """A run in the list, by what MLflow has of it."""
    status, seconds = state(tags, start, end, journals)
    return RunSummary(
        run_id=tags[RUN_ID],
        line=tags[LINE],
        status=status,
        started=datetime.fromtimestamp(start / 1000, UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        datasets=json.loads(tags.get(DATASETS, "[]")),
        average=finite(metrics).get("average"),
        error=tags.get(ERROR) or None,
    )


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers: JSON has no NaN, and MLflow keeps infinity as the largest float."""
    return {name: value for name, value in metrics.items() if abs(value) < sys.float_info.max}


def is_empty(settings: Settings) -> bool:
    """Whether nothing was ever recorded in the home, checked without creating its database."""
    return is_own(settings) and not settings.layout.mlflow_database.exists()


def escaped(text: str) -> str:
    """The letters and digits of a text: MLflow would read a quote or a wildcard as part of the condition."""
    return "".join(character for character in text if character.isalnum()) or "-"
