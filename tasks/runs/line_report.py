"""What the store knows of a line, for its page: the live version, scores, files, changes, rejected candidates.

Reads the store alone: neither Prefect nor MLflow has to answer.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from backprop_core.errors import ArtifactDamaged, RunUnknown
from backprop_core.lines import deletion
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.publishing.release import released
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import Decision, GateReport, TaskVerdict
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetRef, Digest, GGUFRef, RunId
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import MANIFEST
from tasks.runs.line_state import places

MODEL = "model.gguf"
ADAPTER = {"adapter_model.safetensors": "adapter", "adapter_config.json": "its config"}
COMPARED = ("model", "training", "merge", "evaluation", "gate", "export", "publish", "min_new_rows")  # of two specs
MOST_REJECTED, MOST_SAMPLES = 10, 10
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what a damaged record raises
LONGEST = 400  # characters of a turn in a sample


class StoredFile(Record):
    """A file of a version that can be downloaded."""

    name: str = Field(description="What it is: a quantization, `adapter` or `its config`.")
    filename: str = Field(description="Its name as a download.")
    bytes: int
    sha256: Digest


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


class RejectedReport(Record):
    """A candidate that did not go live."""

    run_id: RunId
    at: datetime
    average: float | None
    reason: str


class NewData(Record):
    """A dataset that a version added."""

    digest: Digest = Field(description="Of its training rows.")
    name: str
    task: str
    read: int
    train_rows: int
    left_out: dict[str, int] = Field(description="Rows dropped or not trained, by reason.")


class SettingChange(Record):
    """A setting that differs from the version before."""

    field: str
    before: Any
    after: Any


class ChangeReport(Record):
    """What is different in a version, compared with the version that it continues."""

    number: int
    parent: int | None
    data: list[NewData]
    settings: list[SettingChange]
    tasks: list[TaskVerdict]


class Sample(Record):
    """A training row."""

    turns: list[tuple[str, str]] = Field(description="Role and text; long texts are cut.")


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


class Ended(NamedTuple):
    """What is needed of a run's result."""

    line: str
    flow: str | None
    status: str
    reason: str
    average: float | None
    gguf: list[GGUFRef]
    answers: dict[str, str]  # of its first GGUF file, by prompt
    spec: dict[str, Any]
    base: dict[str, float]  # the base's scores by task
    forgetting: dict[str, float | None]


def names(config: Settings) -> list[str]:
    """The lines of the store."""
    return Lines(Store(config.store_path)).names()


def version(line: str, number: int, config: Settings) -> LineVersion:
    """A version of a line. Raises RunUnknown, ArtifactDamaged."""
    with of_line(line):
        return Lines(Store(config.store_path)).version(line, number)


@contextmanager
def readable(of: str, folders: str) -> Iterator[None]:
    """Raise ArtifactDamaged if a record of a line or a run, in these folders, is missing or cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, OSError):
            said = f"{Path(error.filename or '').name}: {error.strerror}"
        raise ArtifactDamaged(
            f"a record of {of} cannot be read: {said}", hint=f"put {folders} of the store back from a backup"
        ) from error


def of_line(name: str) -> AbstractContextManager[None]:
    """Raise ArtifactDamaged if a record of a line is missing or cannot be read."""
    return readable(f"line {name}", f"lines/{name} and runs")


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


# Files


def stored_files(store: Store, line: str, number: int, version: LineVersion) -> Iterator[tuple[StoredFile, Path]]:
    """The GGUF files and the adapter of a version that are still in the store, with their paths."""
    made, known = ended(store, version.run_id), released(line, number, store)
    refs = {ref.digest: ref for ref in [*(made.gguf if made else []), *(known.gguf if known else [])]}
    for ref in refs.values():
        filename = f"{line}-v{number}-{ref.quantization}.gguf"
        yield from of_artifact(store, ref.digest, {MODEL: (ref.quantization, filename)})
    adapter = {inside: (name, f"{line}-v{number}-{inside}") for inside, name in ADAPTER.items()}
    yield from of_artifact(store, version.merged.digest, adapter)


def of_artifact(store: Store, digest: str, wanted: dict[str, tuple[str, str]]) -> Iterator[tuple[StoredFile, Path]]:
    """Files of an artifact by their names in it, each with what it is and its name as a download.

    Nothing if the artifact was removed, or its list of files is not the one that it is named after.
    """
    directory = store.layout.artifact(digest)
    try:
        listed = files_at(directory / MANIFEST, (directory / MANIFEST).stat().st_mtime_ns, digest)
    except FileNotFoundError:
        return
    for inside, (name, filename) in wanted.items():
        if inside in listed:
            size, sha256 = listed[inside]
            yield StoredFile(name=name, filename=filename, bytes=size, sha256=sha256), directory / inside


@lru_cache(maxsize=4096)
def files_at(manifest: Path, _changed: int, digest: str) -> dict[str, tuple[int, str]]:
    """Size and sha256 of an artifact's files, by name; nothing if the list was changed."""
    text = manifest.read_bytes()
    if hashlib.sha256(text).hexdigest() != digest:
        return {}
    return {name: (size, sha256) for name, size, sha256 in json.loads(text)["files"]}


def download(line: str, number: int, filename: str, config: Settings) -> tuple[StoredFile, Path]:
    """A file of a version, by its name as a download. Raises RunUnknown."""
    store = Store(config.store_path)
    with of_line(line):
        for link, path in stored_files(store, line, number, Lines(store).version(line, number)):
            if link.filename == filename and path.is_file() and not path.is_symlink():
                return link, path
    raise RunUnknown(
        f"version {number} of line {line} has no file {filename[:100]}",
        hint="it may have been pruned: `backprop export` writes it again",
    )


# Results of runs


def ended(store: Store, run_id: str) -> Ended | None:
    """What is needed of a run's result; None without a result."""
    path = store.layout.run(run_id).result
    try:
        return ended_at(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=20_000)
def ended_at(path: Path, _changed: int) -> Ended:
    """Read a result once for as long as its file does not change."""
    made = json.loads(path.read_bytes())
    evaluation, gate = made.get("evaluation") or {}, made.get("gate") or {}
    tasks, gguf = evaluation.get("tasks", []), made.get("gguf") or []
    fields = GGUFRef.model_fields
    answers = (gguf[0].get("fidelity") or {}).get("answers", []) if gguf else []
    return Ended(
        line=made["line"],
        flow=made.get("flow"),
        status=made["status"],
        reason=made.get("reason") or gate.get("reason") or "",
        average=evaluation.get("average"),
        gguf=[GGUFRef(**{name: file[name] for name in fields}) for file in gguf],
        answers={each["prompt"]: each["answer"] for each in answers},
        spec={part: made["spec"].get(part) for part in COMPARED},
        base=dict(zip(tasks, evaluation.get("base_scores") or evaluation.get("base", []), strict=False)),
        forgetting=dict(zip(tasks, evaluation.get("forgetting", []), strict=False)),
    )


def rejected(line: str, config: Settings) -> list[RejectedReport]:
    """The line's newest rejected candidates, the newest first; none of a deleted line of the same name.

    Raises ArtifactDamaged.
    """
    store = Store(config.store_path)
    with of_line(line):
        deleted = deletion.last(line, store)
    newest = sorted(results(store), reverse=True)
    mine = (found for time, path in newest if (found := rejected_report(line, path, time)))
    return list(islice((each for each in mine if deleted is None or each.at > deleted), MOST_REJECTED))


def results(store: Store) -> Iterator[tuple[int, Path]]:
    """When each run of the store has ended, in ns, and its result."""
    if not store.layout.runs.is_dir():
        return
    with os.scandir(store.layout.runs) as runs:
        for run in runs:
            path = store.layout.run(run.name).result
            with suppress(FileNotFoundError, NotADirectoryError):
                yield path.stat().st_mtime_ns, path


def rejected_report(line: str, path: Path, time: int) -> RejectedReport | None:
    """A run whose candidate a line has rejected; None for any other, and for a result that cannot be read."""
    try:
        result = ended_at(path, time)
    except UNREADABLE:  # nothing says whose it is
        return None
    if (result.line, result.flow, result.status) != (line, "retrain", "rejected"):
        return None
    at = datetime.fromtimestamp(time / 1e9, UTC)
    return RejectedReport(run_id=path.parent.name, at=at, average=result.average, reason=result.reason)


def live_answers(line: str, config: Settings) -> dict[str, str]:
    """The live version's answers to the prompts of its file's check, by prompt."""
    store = Store(config.store_path)
    live = Lines(store).live(line)
    made = ended(store, live.version.run_id) if live else None
    return made.answers if made else {}


# What changed


def change(store: Store, number: int, versions: dict[int, LineVersion]) -> ChangeReport:
    """What a version changed."""
    version = versions[number]
    parent = versions.get(version.parent or 0)
    after, before = ended(store, version.run_id), ended(store, parent.run_id) if parent else None
    return ChangeReport(
        number=number,
        parent=version.parent,
        data=[new_data(dataset) for dataset in new_datasets(number, versions)],
        settings=list(differences(before.spec, after.spec)) if before and after else [],
        tasks=version.gate.tasks if version.gate else [],
    )


def new_datasets(number: int, versions: dict[int, LineVersion]) -> list[DatasetRef]:
    """The datasets of a version that its parent does not have."""
    parent = versions.get(versions[number].parent or 0)
    return versions[number].datasets[len(parent.datasets) if parent else 0 :]


def new_data(dataset: DatasetRef) -> NewData:
    left_out = {reason: rows for reason, rows in (dataset.dropped | dataset.not_trained).items() if rows}
    return NewData(
        digest=dataset.train.digest,
        name=dataset.name,
        task=dataset.task,
        read=dataset.read,
        train_rows=dataset.train.rows,
        left_out=left_out,
    )


def differences(before: Any, after: Any, path: str = "") -> Iterator[SettingChange]:
    """The fields of two specs that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield SettingChange(field=path, before=before, after=after)


def samples(store: Store, datasets: list[DatasetRef]) -> Iterator[Sample]:
    """The first training rows of datasets."""
    files = [store.layout.artifact(dataset.train.digest) / "rows.jsonl" for dataset in datasets]
    rows = (json.loads(line) for file in files if file.is_file() for line in lines_of(file))
    for row in islice(rows, MOST_SAMPLES):
        turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
        yield Sample(turns=[(turn["role"], plain(turn.get("content"))) for turn in turns])


def lines_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as text:
        yield from islice(text, MOST_SAMPLES)


def plain(content: Any) -> str:
    """A turn's content as text, cut."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
