"""What the store knows of a line, for its page: the live version, scores, files, changes.

Reads the store alone: neither Prefect nor MLflow has to answer.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from backprop_core.errors import RunUnknown
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import Decision, GateReport
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetRef, RunId
from backprop_core.store.artifacts import Store
from tasks.runs.ended_runs import ended
from tasks.runs.line_state import places
from tasks.runs.readable_records import of_line
from tasks.runs.version_changes import ChangeReport, Sample, change, new_datasets, samples
from tasks.runs.version_files import StoredFile, stored_files


class TaskScore(Record):
    """A score of a version on a task."""

    score: float = Field(description="In the line's metric; higher is better.")
    rows: int = Field(description="Held-out rows.")
    comparable: bool = Field(description="Whether it was measured on the held-out rows of the newest version.")


class VersionReport(Record):
    """A version of a line."""

    number: int
    run_id: RunId
    parent: int | None = Field(description="The version that it continues.")
    made: datetime
    average: float | None = Field(description="Mean score over the trained tasks.")
    scores: dict[str, TaskScore]
    new_rows: int = Field(description="Training rows that its run added.")
    verdict: str = Field(description="Why it could go live.")
    files: list[StoredFile]


class LiveReport(Record):
    """The version that is live."""

    number: int
    since: datetime
    verdict: str = Field(description="Why it could go live.")
    places: list[str] = Field(description="Where it is published.")
    average: float | None


class LineRow(Record):
    """A line in the list of lines."""

    line: str
    base: str | None
    versions: int
    tasks: list[str]
    metric: str
    live: LiveReport | None
    files: list[StoredFile] = Field([], description="Of the live version.")
    previous: int | None = Field(None, description="The version that a rollback makes live if none is named.")
    damaged: str | None = Field(None, description="Why its records cannot be read.")


class LineReport(Record):
    """A line, as the store has it."""

    line: str
    base: str
    metric: str
    tasks: list[str]
    watch: list[str]
    live: LiveReport | None
    versions: list[VersionReport] = Field(description="Newest first.")
    base_scores: dict[str, float]
    forgotten: dict[str, float | None] = Field(description="By task; null if no earlier version has the same rows.")
    changes: list[ChangeReport] = Field(description="Newest version first.")
    samples: list[Sample] = Field(description="Rows that the newest version has learned.")

    def is_live(self, version: VersionReport) -> bool:
        """Whether a version is the one that is live."""
        return self.live is not None and self.live.number == version.number

    @property
    def previous(self) -> VersionReport | None:
        """The version that a rollback makes live if none is named."""
        numbers = {version.number: version for version in self.versions}
        live = numbers.get(self.live.number) if self.live else None
        return numbers.get(before(live, numbers) or 0) if live else None

    @property
    def every_score(self) -> list[float]:
        """All scores of all versions and the base."""
        mine = [one.score for version in self.versions for one in version.scores.values()]
        return [*mine, *self.base_scores.values()]

    @property
    def has_other_rows(self) -> bool:
        """Whether a score was measured on other held-out rows than those of the newest version."""
        return not all(one.comparable for version in self.versions for one in version.scores.values())


class VersionPage(Record):
    """Everything on the page of a version."""

    version: VersionReport
    is_live: bool
    base: str
    metric: str
    gate: GateReport | None = Field(description="Null in versions older than this record.")
    places: list[str] = Field(description="Where it was published.")
    change: ChangeReport
    datasets: list[DatasetRef] = Field(description="Everything that it has learned, the oldest first.")


def names(config: Settings) -> list[str]:
    """The lines of the store."""
    return Lines(Store(config.store_path)).names()


def version(line: str, number: int, config: Settings) -> LineVersion:
    """A version of a line. Raises RunUnknown, ArtifactDamaged."""
    with of_line(line):
        return Lines(Store(config.store_path)).version(line, number)


def line_report(name: str, config: Settings) -> LineReport:
    """A line. Raises RunUnknown if the store has no version of it, ArtifactDamaged."""
    with of_line(name):
        store = Store(config.store_path)
        lines = Lines(store)
        versions = {number: known_version(store, name, number) for number in lines.versions(name)}
        if not versions:
            raise RunUnknown(f"line {name} has no version", hint="`backprop lines` lists all lines")
        newest = versions[max(versions)]
        made = ended(store, newest.run_id)
        reports = [version_report(store, name, number, versions[number], newest) for number in versions]
        champion = lines.champion(name)
        if champion:
            known_version(store, name, champion)
        return LineReport(
            line=name,
            base=newest.base.name,
            metric=metric_of(newest),
            tasks=list(newest.scores),
            watch=newest.watch,
            live=next((live_report(store, name, each) for each in reports if each.number == champion), None),
            versions=reports[::-1],
            base_scores=made.base if made else {},
            forgotten=made.forgetting if made else {},
            changes=[change(store, number, versions) for number in reversed(versions)],
            samples=list(samples(store, new_datasets(max(versions), versions))),
        )


def version_page(line: str, number: int, config: Settings) -> VersionPage:
    """A version. Raises RunUnknown, ArtifactDamaged."""
    store = Store(config.store_path)
    lines = Lines(store)
    if number not in lines.versions(line):
        raise RunUnknown(f"line {line} has no version {number}", hint="`backprop lines` lists all versions")
    with of_line(line):
        version = known_version(store, line, number)
        wanted = {number, version.parent} - {None}
        versions = {each: known_version(store, line, each) for each in lines.versions(line) if each in wanted}
        return VersionPage(
            version=version_report(store, line, number, version, version),
            is_live=lines.champion(line) == number,
            base=version.base.name,
            metric=metric_of(version),
            gate=version.gate,
            places=places(store, line, number),
            change=change(store, number, versions),
            datasets=version.datasets,
        )


def line_row(name: str, config: Settings) -> LineRow:
    """A line in the list of lines; one without a version has only its name. Raises ArtifactDamaged."""
    with of_line(name):
        store = Store(config.store_path)
        lines = Lines(store)
        numbers, champion = lines.versions(name), lines.champion(name)
        if not numbers:
            return LineRow(line=name, base=None, versions=0, tasks=[], metric="", live=None)
        number = champion or numbers[-1]
        version = known_version(store, name, number)
        report = version_report(store, name, number, version, version)
        return LineRow(
            line=name,
            base=version.base.name,
            versions=len(numbers),
            tasks=list(version.scores),
            metric=metric_of(version),
            live=live_report(store, name, report) if champion else None,
            files=report.files if champion else [],
            previous=before(report, numbers) if champion else None,
        )


def before(version: VersionReport, numbers: Iterable[int]) -> int | None:
    """The version that a rollback from this one makes live if none is named."""
    number = version.parent or version.number - 1
    return number if number in numbers else None


def known_version(store: Store, line: str, number: int) -> LineVersion:
    """A version, read once: its file never changes."""
    path = store.layout.line(line).version(number)
    return version_at(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def version_at(path: Path, _changed: int) -> LineVersion:
    return LineVersion.model_validate_json(path.read_bytes())


def metric_of(version: LineVersion) -> str:
    """The metric of its gate."""
    return version.gate.metric if version.gate else "token_accuracy"


def version_report(store: Store, line: str, number: int, version: LineVersion, newest: LineVersion) -> VersionReport:
    """A version, scored in the metric of the newest one."""
    last, scores = newest.cells, {}
    for task, cell in version.cells.items():
        score = cell.score(metric_of(newest))
        if score is not None:
            same = task in last and cell.heldout == last[task].heldout
            scores[task] = TaskScore(score=score, rows=cell.rows.rows, comparable=same)
    trained = [each.score for task, each in scores.items() if task not in version.watch]
    return VersionReport(
        number=number,
        run_id=version.run_id,
        parent=version.parent,
        made=time_of(store.layout.line(line).version(number)),
        average=sum(trained) / len(trained) if trained else None,
        scores=scores,
        new_rows=version.datasets[-1].train.rows if version.datasets else 0,
        verdict=verdict(store, line, number, version),
        files=[link for link, _ in stored_files(store, line, number, version)],
    )


def live_report(store: Store, line: str, version: VersionReport) -> LiveReport:
    """The version that is live, since when and why."""
    return LiveReport(
        number=version.number,
        since=live_since(store, line, version.number),
        verdict=version.verdict,
        places=places(store, line, version.number),
        average=version.average,
    )


def live_since(store: Store, line: str, number: int) -> datetime:
    """When a version went live: by the record of the person who made it live, else when the champion was written."""
    moves = [move.act.at for move in Lines(store).moves(line) if move.number == number]
    return max(moves, default=time_of(store.layout.line(line).champion))


def verdict(store: Store, line: str, number: int, version: LineVersion) -> str:
    """Who or what let it go live, in a sentence: the person who moved it, else who approved it, else the gate."""
    if act := Lines(store).act(line, number) or version.act:
        return act.sentence
    path = store.layout.run(version.run_id).decision
    if path.is_file():
        return Decision.model_validate_json(path.read_bytes()).sentence
    if version.gate:
        return f"{'passed' if version.gate.accepted else 'rejected by'} the gate: {version.gate.reason}"
    return "the gate's verdict is not on record"


def time_of(path: Path) -> datetime:
    """When a file was last written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def live_answers(line: str, config: Settings) -> dict[str, str]:
    """The live version's answers to the prompts of its file's check, by prompt."""
    store = Store(config.store_path)
    live = Lines(store).live(line)
    made = ended(store, live.version.run_id) if live else None
    return made.answers if made else {}
