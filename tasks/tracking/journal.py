"""The journal: what MLflow is to get, first written to disk as lines of JSON. A run and its child runs share a file.

`backprop_core.store.layout` names the files in a directory of journals.
"""

import errno
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from filelock import FileLock, Timeout
from pydantic import JsonValue, ValidationError

from backprop_core.errors import RunActive
from backprop_core.runtime.redaction import blank_item, blank_json, blank_secrets
from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    ArtifactRef,
    DatasetSummary,
    Drift,
    ErrorRecord,
    Evaluation,
    Located,
    RunResult,
    SourceRef,
    StageRecord,
    Status,
)
from backprop_core.schema.specs import TEACHER_FORCED
from backprop_core.store.layout import JournalLayout
from tasks.tracking.journal_lines import (
    LINE,
    AnyLine,
    Called,
    Checkpointed,
    Described,
    Directory,
    Document,
    Ended,
    Evaluated,
    Inputs,
    Kept,
    KeptSource,
    Measured,
    Staged,
    Started,
    Tagged,
    Waited,
)

LONGEST_PARAMETER = 500  # characters; the complete spec stands in spec.json
LONGEST_TAG = 5000
NAME, NOTE = "mlflow.runName", "mlflow.note.content"  # tags: the name and the description of a run
SECONDS = "backprop.seconds"  # tag: how long a run has worked, waits left out
WORTH_NOTING = 1000  # ms
Measures = dict[str, Sequence[float | None]]
LARGEST_LOSS = 700.0  # nats, whose exponential is still a number
log = logging.getLogger(__name__)


class Clock:
    """How long the runs of a journal worked. Waits do not count, nor does the time between a death and the resume."""

    def __init__(self) -> None:
        self._worked: dict[str, int] = {}  # ms, up to the last end
        self._open: dict[str, tuple[int, int]] = {}  # when the run was started, and how long it has waited since
        self._last = 0

    def see(self, line: AnyLine) -> None:
        """The next line of the journal."""
        match line:
            case Started():
                self._close(line.run, self._last)
                self._open[line.run] = line.time, 0
            case Waited():
                self._open = {run: (begin, more + line.time - line.since) for run, (begin, more) in self._open.items()}
            case Ended():
                self._close(line.run, line.time)
        self._last = line.time

    def seconds(self, run: str, until: int | None = None) -> float:
        """How long a run has worked until its end, or until `until`, by default the last line."""
        return (self._worked.get(run, 0) + self._since(run, until or self._last)) / 1000

    def _close(self, run: str, until: int) -> None:
        self._worked[run] = self._worked.get(run, 0) + self._since(run, until)
        self._open.pop(run, None)

    def _since(self, run: str, until: int) -> int:
        begin, waited = self._open.get(run, (until, 0))
        return max(0, until - begin - waited)


class Ending(NamedTuple):
    """How a run ended, according to its journal."""

    status: Status
    seconds: float


def ending(journals: JournalLayout, root: str, run: str) -> Ending | None:
    """How a run in the journal of `root` ended; None while it runs, or if this machine has no journal of it.

    A run without an end was interrupted if no process writes its journal any more.
    """
    path, clock, status = journals.lines(root), Clock(), None
    if not path.is_file() or is_written(journals, root):
        return None
    for _, line in read_journal(path):
        clock.see(line)
        if line.run == run and isinstance(line, Started | Ended):
            status = line.status if isinstance(line, Ended) else None
    return Ending(status or "interrupted", clock.seconds(run))


def writer_lock(journals: JournalLayout, run_id: str) -> FileLock:
    """The lock that a process holds while it writes this run's journal. A taken lock means that the run is alive."""
    return FileLock(journals.lock(run_id), thread_local=False)


def is_written(journals: JournalLayout, run_id: str) -> bool:
    """Whether a living process has the journal open."""
    try:
        with writer_lock(journals, run_id).acquire(timeout=0):
            return False
    except Timeout:
        return True


def read_journal(path: Path, offset: int = 0) -> Iterator[tuple[int, AnyLine]]:
    """Every complete line from `offset` on, and the offset behind it. A line that cannot be read is left out."""
    with path.open("rb") as file:
        file.seek(offset)
        for text in file:
            if not text.endswith(b"\n"):
                return
            offset += len(text)
            try:
                yield offset, LINE.validate_json(text)
            except ValidationError:
                log.warning("%s: the line before byte %d cannot be read and is left out", path, offset)


def retire(journals: JournalLayout, run_id: str, offset: int) -> None:
    """Move a journal that was sent up to `offset` to `sent/`, unless a process is writing it or has written more."""
    with suppress(Timeout), writer_lock(journals, run_id).acquire(timeout=0):
        if next(read_journal(journals.lines(run_id), offset), None) is None:
            journals.sent.root.mkdir(exist_ok=True, mode=0o700)
            for file in (JournalLayout.lines, JournalLayout.sent_note):
                with suppress(FileNotFoundError):
                    file(journals, run_id).replace(file(journals.sent, run_id))
            with suppress(PermissionError):  # Windows keeps a file that is open
                journals.lock(run_id).unlink()


def bring_back(journals: JournalLayout, run_id: str) -> None:
    """Undo `retire`, for a run that continues."""
    for file in (JournalLayout.sent_note, JournalLayout.lines):
        with suppress(FileNotFoundError):
            file(journals.sent, run_id).replace(file(journals, run_id))


class JournalFile:
    """The file behind a run and its child runs: one writing process, any number of threads."""

    def __init__(self, directory: Path, run_id: str) -> None:
        journals = JournalLayout(directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = journals.lines(run_id)
        self._lock = writer_lock(journals, run_id)
        try:
            self._lock.acquire(timeout=1)  # a look whether we live takes a moment
        except Timeout:
            raise RunActive(f"run {run_id} is active", hint="wait until it ends, or stop it") from None
        bring_back(journals, run_id)
        self._guard = threading.Lock()
        self._warned = False
        self.started: set[str] = set()
        self.kept: set[str] = set()  # digests and keys that are noted
        self.clock = Clock()
        self._highest: dict[tuple[str, str], int] = {}
        self._file = self.path.open("ab", buffering=0)
        self._size = self._recall()
        self._file.truncate(self._size)

    def _recall(self) -> int:
        """Read the existing lines; returns the file's size without an incomplete last line."""
        text = self.path.read_bytes()
        for _, line in read_journal(self.path):
            self.clock.see(line)
            if isinstance(line, Started):
                self.started.add(line.run)
            if isinstance(line, Kept | Staged):
                self.kept.add(line.digest if isinstance(line, Kept) else line.key)
            if isinstance(line, Measured):
                self._highest.update({(line.run, name): line.step for name in line.values})
        return text.rfind(b"\n") + 1

    def append(self, line: AnyLine) -> None:
        """Write one line. If that fails, log it once and go on."""
        with self._guard:
            self._append(line)

    def measure(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """Write the values, except metrics that were already written at this step or a later one."""
        with self._guard:
            new = {name: value for name, value in values.items() if step > self._highest.get((run, name), -1)}
            if new:
                self._highest.update({(run, name): step for name in new})
                self._append(Measured(time=now(), run=run, step=step, values=new))

    def _append(self, line: AnyLine) -> None:
        self.clock.see(line)
        data = line.model_dump_json().encode() + b"\n"
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "no space left")
            self._size += len(data)
        except OSError as error:
            self._file.truncate(self._size)
            if not self._warned:
                log.warning("%s cannot be written (%s); the run continues, its record has gaps", self.path, error)
            self._warned = True

    def close(self) -> None:
        self._file.close()
        self._lock.release()


class Journal:
    """The record of one run. Every method may be called again when an interrupted run is resumed.

    Raises RunActive if another process writes the journal of the same run.
    """

    def __init__(self, directory: Path, run_id: str) -> None:
        self.run_id = run_id
        self._parent: str | None = None
        self._file = JournalFile(directory, run_id)

    def child(self, run_id: str) -> Self:
        """A run inside this one, in the same file."""
        child = object.__new__(type(self))
        child.run_id, child._parent, child._file = run_id, self.run_id, self._file
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the file. A run that has not ended counts as interrupted from now on."""
        self._file.close()

    def start(
        self, *, line: str, name: str, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """The run begins under a line's name. Parameters are kept from the first start, the rest is of the last."""
        again = self.run_id in self._file.started
        anew = {NAME: name, NOTE: ""} if again else {}  # in place of those of its earlier end
        self._file.started.add(self.run_id)
        self._file.append(
            Started(
                **self._head(),
                line=line,
                name=name,
                parent=self._parent,
                params={} if again else shortened(params or {}, LONGEST_PARAMETER),
                tags=shortened(anew | dict(tags or {}), LONGEST_TAG),
            )
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step. What was journaled at this step or a later one is not written again."""
        self._file.measure(self.run_id, step, values)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Labels; a later one replaces an earlier one."""
        self._file.append(Tagged(**self._head(), tags=shortened(tags, LONGEST_TAG)))

    def name(self, name: str) -> None:
        """A name in place of the one that the run was started with."""
        self.tags({NAME: name})

    def describe(self, text: str) -> None:
        """What came of the run, in Markdown."""
        self.tags({NOTE: text})

    def inputs(self, datasets: Sequence[DatasetSummary], places: Mapping[str, str] | None = None) -> None:
        """The datasets that the run works on, with their digests and, by name, where they were read."""
        blanked = {name: blank_secrets(place) for name, place in (places or {}).items()}
        self._file.append(Inputs(**self._head(), datasets=list(datasets), places=blanked))

    def document(self, name: str, value: JsonValue) -> None:
        """A small JSON artifact, such as `spec.json`; secrets in its text are blanked."""
        self._file.append(Document(**self._head(), name=name, value=blank_json(value)))

    def datasets(self, reports: Sequence[CuratedReport]) -> None:
        """What was made of the run's datasets, as `dataset-report.json` and `dataset-report.html`."""
        self._file.append(Described(**self._head(), datasets=list(reports)))

    def directory(self, name: str, artifact: Located) -> None:
        """An artifact of the store, such as the merged adapter; its files are read when they are sent."""
        self._file.append(Directory(**self._head(), name=name, artifact=artifact))

    def keep(self, ref: ArtifactRef, path: Path, record: dict[str, Any]) -> None:
        """An artifact that MLflow gets a copy of, unless it was noted before."""
        if ref.digest not in self._file.kept:
            self._file.kept.add(ref.digest)
            line = Kept(**self._head(), artifact=ref.artifact, digest=ref.digest, path=str(path), record=record)
            self._file.append(line)

    def keep_source(self, source: SourceRef) -> None:
        """Files of rows that MLflow gets a copy of."""
        self._file.append(KeptSource(**self._head(), source=source))

    def staged(self, key: str, record: JsonValue, result: JsonValue) -> None:
        """A finished stage, unless it was noted before."""
        if key not in self._file.kept:
            self._file.kept.add(key)
            self._file.append(Staged(**self._head(), key=key, record=record, result=result))

    def called(self, stage: StageRecord) -> None:
        """A stage was called, and has its result."""
        self._file.append(Called(**self._head(), stage=stage))

    def checkpoint(self, key: str, path: Path | None) -> None:
        """The newest checkpoint of a training; None once that is finished."""
        self._file.append(Checkpointed(**self._head(), key=key, path=path and str(path)))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Record the current matrix as table, plot and metrics by task: step 0 is the base, step i is run i."""
        for step, values in enumerate(rows(evaluation)):
            self.metrics(step, values)
        self._file.append(Evaluated(**self._head(), evaluation=evaluation))

    @contextmanager
    def waiting(self, on: Literal["person", "device"]) -> Iterator[None]:
        """The run waits within the block; that time does not count as work."""
        since = now()
        try:
            yield
        finally:
            if now() - since >= WORTH_NOTING:
                self._file.append(Waited(**self._head(), since=since, on=on))

    def drift(self, run: int, drift: Drift) -> None:
        """How far the merge after a run moved the adapter."""
        self.metrics(run, {"merge.weight": drift.weight, "merge.drift_a": drift.a, "merge.drift_b": drift.b})

    def gate(self, report: GateReport, run: int) -> None:
        """What the gate decided after a run: `gate.json`, tags, and the differences with their bounds as metrics."""
        self.document("gate.json", report.model_dump(mode="json"))
        verdict = "accepted" if report.accepted else "rejected"
        self.tags({"backprop.gate": verdict, "backprop.gate.reason": report.reason})
        measured = {"average": report.average, "rival_average": report.rival_average, "gain_low": report.gain_low}
        for task in report.tasks:
            bounds = {"difference": task.difference, "low": task.low, "high": task.high}
            measured |= {f"{name}.{task.task}": value for name, value in bounds.items()}
        self.metrics(run, {f"gate.{name}": value for name, value in measured.items() if value is not None})

    def costs(self, values: Mapping[str, float]) -> None:
        """What the run has cost since it was last started; the step is how many seconds it has worked."""
        self.metrics(int(self._file.clock.seconds(self.run_id, now())), values)

    def end(self, status: Status, error: ErrorRecord | None = None) -> None:
        """The run is over."""
        self.tags({SECONDS: f"{self._file.clock.seconds(self.run_id, now()):.3f}"})
        self._file.append(Ended(**self._head(), status=status, error=error and blanked_error(error)))

    def result(self, result: RunResult) -> None:
        """The run is over with this result: `result.json`, the merged adapter, tags for digests, and the end."""
        self.document("result.json", result.model_dump(mode="json"))
        if result.gguf:
            self.document("fidelity.json", {file.quantization: file.fidelity for file in result.gguf})
        rows = len(result.evaluation.matrix) if result.evaluation else 0
        for record in result.harness:
            for step, score in (0, record.base), (rows, record.score):
                self.metrics(step, {f"harness.{record.task}.{record.metric}": score})
        if result.gate:
            self.gate(result.gate, rows)
        if result.reason:
            self.tags({"backprop.reason": result.reason})
        named = {"base": result.base, "merged": result.merged}
        self.tags({f"backprop.{name}": ref.digest for name, ref in named.items() if ref})
        if result.merged:
            self.directory("merged", result.merged)
        self.end(result.status, result.error)

    def _head(self) -> dict[str, Any]:
        return {"time": now(), "run": self.run_id}


def rows(evaluation: Evaluation) -> Iterator[dict[str, float]]:
    """Metrics of the base, then of each run, by task; at the end the averages, and what each task has forgotten."""
    tasks = evaluation.tasks
    own = [{}] * (len(evaluation.matrix) + 1) if evaluation.metric in TEACHER_FORCED else chosen(evaluation)
    yield by_task(tasks, {"token_accuracy": evaluation.base, "exact_match": evaluation.base_exact_match} | own[0])
    scores = zip(evaluation.matrix, evaluation.loss, evaluation.exact_match, strict=True)
    for run, (accuracy, loss, exact) in enumerate(scores, 1):
        perplexity = [None if nats is None else math.exp(min(nats, LARGEST_LOSS)) for nats in loss]
        row: Measures = {"token_accuracy": accuracy, "loss": loss, "perplexity": perplexity, "exact_match": exact}
        values = by_task(tasks, row | own[run])
        yield values | (averages(evaluation) if run == len(evaluation.matrix) else {})


def chosen(evaluation: Evaluation) -> list[Measures]:
    """The rows in the metric of the averages."""
    rows: list[Sequence[float | None]] = [evaluation.base_scores, *evaluation.scores]
    return [{evaluation.metric: row} for row in rows]


def by_task(tasks: Sequence[str], scores: Measures) -> dict[str, float]:
    """One row of each matrix as `<measure>.<task>`, without the tasks that came later."""
    cells = ((f"{name}.{task}", score) for name, row in scores.items() for task, score in zip(tasks, row, strict=True))
    return {name: score for name, score in cells if score is not None}


def averages(evaluation: Evaluation) -> dict[str, float]:
    """The averages of the matrix after its last run."""
    transfer = evaluation.backward_transfer
    lost = by_task(evaluation.tasks, {"forgetting": evaluation.forgetting})
    return {"average": evaluation.average, **lost} | ({} if transfer is None else {"backward_transfer": transfer})


def parameters(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The leaves of a spec by their path, as text: `training.lora.rank` → `8`, `datasets.0.path` → …"""
    found: dict[str, str] = {}
    for name, value in spec.items():
        match value:
            case Mapping():
                found |= parameters(value, f"{prefix}{name}.")
            case [Mapping(), *_]:
                found |= parameters({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}.")
            case _:
                found[f"{prefix}{name}"] = str(value)
    return found


def shortened(texts: Mapping[str, str], longest: int) -> dict[str, str]:
    """The texts without secrets, cut to `longest` characters."""
    return {name: blank_item(name, text)[:longest] for name, text in texts.items()}


def blanked_error(error: ErrorRecord) -> ErrorRecord:
    return error.model_copy(update={"message": blank_secrets(error.message), "hint": blank_secrets(error.hint)})


def now() -> int:
    return time.time_ns() // 1_000_000
