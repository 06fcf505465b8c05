"""What the pages show, block by block. Each block has one source: the store or Prefect."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from backprop_core.errors import ArtifactDamaged, DeploymentRefused, PrefectUnreachable, RunUnknown
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import NAME
from backprop_core.schema.records import Record
from flows.cli import lines_file
from flows.server.web.line_runs import ACTIVE, FlowRun, LineRuns, Question, flow_runs, last_retrains, line_runs, waiting
from flows.server.web.mlflow_api import MlflowApi
from flows.server.web.prefect_api import PrefectApi
from tasks.runs import line_renaming, line_report, rejected_candidates, run_report, version_files
from tasks.runs.answer_votes import Votes, votes_on
from tasks.runs.line_report import LineReport, LineRow, VersionReport
from tasks.runs.rejected_candidates import RejectedReport
from tasks.runs.run_progress import run_progress, sign
from tasks.runs.version_files import StoredFile


class Sources(NamedTuple):
    """Where the blocks come from."""

    config: Settings
    prefect: PrefectApi
    mlflow: MlflowApi
    addresses: Mapping[str, str]  # of Prefect's and MLflow's pages
    is_alive: Callable[[], dict[str, bool]]  # the processes of `serve`


class ChangedAnswer(Record):
    """The answers of the live version and of a candidate to one prompt."""

    prompt: str
    live: str | None = Field(description="Null if the live version was never asked.")
    candidate: str

    @property
    def same(self) -> bool:
        return self.live == self.candidate


class LineState(Record):
    """Everything on the page of a line."""

    line: str
    store: LineReport | None = Field(description="Null before its first version.")
    rejected: list[RejectedReport] = Field(description="Candidates that did not go live, the newest first.")
    prefect: LineRuns | None = Field(description="Null while Prefect does not answer.")
    missing: str | None = Field(description="Why there is nothing from Prefect.")
    answers: dict[str, list[ChangedAnswer]] = Field(description="By question: those that changed come first.")
    votes: dict[str, Votes] = Field(description="By run: the votes on the candidates that wait.")


class Work(Record):
    """What runs and what waits, of all lines."""

    running: list[FlowRun]
    waiting: list[Question]
    ended: list[FlowRun] = Field(description="The retrains that ended last, the last ones first.")


class Overview(Record):
    """Everything on the start page."""

    lines: list[LineRow]
    prefect: Work | None = Field(description="Null while Prefect does not answer.")
    missing: str | None = Field(description="Why there is nothing from Prefect.")


class Health(Record):
    """The processes of `serve`, and the disk of the store."""

    running: dict[str, bool]
    free_bytes: int


def names(sources: Sources) -> list[str]:
    """The lines of the store, and those that have a job file."""
    known = {*line_report.names(sources.config), *lines_file.names(sources.config)}
    return sorted(name for name in known if re.fullmatch(NAME, name))


def overview(sources: Sources, *, fresh: bool = True) -> Overview:
    """All lines: those of the store, and those that have only a job file. Unless `fresh`, Prefect is asked seldom."""
    lines = [row(name, sources) for name in names(sources)]
    try:
        return Overview(lines=lines, prefect=work(sources, fresh=fresh), missing=None)
    except (PrefectUnreachable, DeploymentRefused) as error:
        return Overview(lines=lines, prefect=None, missing=error.message)


def row(name: str, sources: Sources) -> LineRow:
    """A line in the list; one whose records are damaged says so, and hides no other."""
    try:
        return line_report.line_row(name, sources.config)
    except ArtifactDamaged as error:
        return LineRow(line=name, base=None, versions=0, tasks=[], metric="", live=None, damaged=error.message)


def work(sources: Sources, *, fresh: bool) -> Work:
    """What runs and what waits for a person."""
    look(sources, fresh=fresh)
    return Work(
        running=flow_runs(sources.prefect, ACTIVE, None),
        waiting=waiting(sources.prefect, sources.config.namespace),
        ended=last_retrains(sources.prefect),
    )


def checked(name: str, sources: Sources) -> str:
    """The name of a line. Raises RunUnknown if there is none of this name."""
    if name not in names(sources):
        now = line_renaming.name_now(name, sources.config) if re.fullmatch(NAME, name) else None
        hint = f"it was renamed: its page is /lines/{now}" if now else f"create it: backprop init {name[:100]}"
        raise RunUnknown(f"there is no line {name[:100]}", hint=hint)
    return name


def versions(name: str, sources: Sources) -> list[VersionReport]:
    """The versions of a line, the newest first. Raises RunUnknown."""
    known = checked(name, sources) in line_report.names(sources.config)
    return line_report.line_report(name, sources.config).versions if known else []


def download(name: str, number: int, filename: str, sources: Sources) -> tuple[StoredFile, Path]:
    """A file of a version. Raises RunUnknown."""
    return version_files.download(checked(name, sources), number, filename, sources.config)


def line(name: str, sources: Sources, *, fresh: bool = True) -> LineState:
    """One line. Unless `fresh`, Prefect is asked seldom. Raises RunUnknown."""
    checked(name, sources)
    config = sources.config
    store = line_report.line_report(name, config) if name in line_report.names(config) else None
    known, missing = None, None
    try:
        known = runs(name, sources, fresh=fresh)
    except (PrefectUnreachable, DeploymentRefused) as error:
        missing = error.message
    return LineState(
        line=name,
        store=store,
        rejected=rejected_candidates.rejected(name, config),
        prefect=known,
        missing=missing,
        answers={each.id: changed_answers(each, sources) for each in known.waiting} if known else {},
        votes={each.run_id: votes_on(name, each.run_id, config) for each in known.waiting} if known else {},
    )


def changed_answers(question: Question, sources: Sources) -> list[ChangedAnswer]:
    """The answers of a candidate's first GGUF file beside those of the live version; those that changed come first."""
    if question.candidate is None or not question.candidate.gguf:
        return []
    live = line_report.live_answers(question.line, sources.config)
    both = [
        ChangedAnswer(prompt=each.prompt, live=live.get(each.prompt), candidate=each.answer)
        for each in question.candidate.gguf[0].answers
    ]
    return sorted(both, key=lambda each: each.same)


def look(sources: Sources, *, fresh: bool) -> None:
    """Have Prefect asked again if something has happened in the store, or if the answer has to be `fresh`."""
    if fresh:
        sources.prefect.forget()
    sources.prefect.notice(sign(sources.config))


def runs(name: str, sources: Sources, *, fresh: bool = True) -> LineRuns:
    """What Prefect knows of a line, with how far each run is."""
    look(sources, fresh=fresh)
    known = line_runs(name, sources.prefect, sources.config.namespace)
    running = [run.model_copy(update={"progress": run_progress(run.id, sources.config)}) for run in known.running]
    ended = {part: [explained(run, sources) for run in getattr(known, part)] for part in ("failures", "lately")}
    return known.model_copy(update={"running": running, **ended})


def explained(run: FlowRun, sources: Sources) -> FlowRun:
    """A run that has ended, with its own error if it failed."""
    error = run_report.error_of(run.id, sources.config) if run.failed else None
    return run.model_copy(update={"error": error})


def health(sources: Sources) -> Health:
    """Whether everything of `serve` lives, and how much space is left."""
    place = sources.config.store_path
    while not place.exists():
        place = place.parent
    return Health(running=sources.is_alive(), free_bytes=shutil.disk_usage(place).free)
