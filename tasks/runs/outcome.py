"""Records what a flow run has done: at once in the journal, at its end as its result."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from prefect.exceptions import TerminationSignal

from backprop_core.data.curated_report import curated_report
from backprop_core.errors import (
    BackpropError,
    Interrupted,
    LeaseLost,
    StoreUnreachable,
    TimeLimit,
    Unexpected,
    system_error,
)
from backprop_core.evaluation.forgetting_matrix import Row, evaluation
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.redaction import blank_json
from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import Act, Decision, GateReport, Power
from backprop_core.schema.refs import (
    BaseRecord,
    BenchReport,
    Cell,
    Contrast,
    Curated,
    DatasetRef,
    ErrorRecord,
    Evaluation,
    Fidelity,
    GGUFRef,
    Harnessed,
    PackageRef,
    RowsRef,
    RunResult,
    Split,
    StageRecord,
    Status,
    TrainResult,
)
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.remote_leases import RUN
from tasks.runs.prepared_run import Prepared
from tasks.runs.record import RunJournal
from tasks.runs.rejections import Attempt
from tasks.runs.results import (
    LoraRun,
    child_id,
    gguf_record,
    harness_records,
    located,
    package_record,
    run_record,
    was_cached,
)
from tasks.runs.sweep_notes import SweepNotes, in_words

if TYPE_CHECKING:
    from tasks.runs.notifications import Audience

log = logging.getLogger(__name__)
STOPPED = (Interrupted, TimeLimit)  # ends that are no failures: `resume` goes on


class Notes:
    """What the body of a flow notes. Here nothing is kept: a plan has no record."""

    def splits(self, rows: Split) -> None:
        """What is trained and what scores: by this run, or by the one that is promoted."""

    def curated(self, sources: Sequence[Curated], datasets: Sequence[DatasetRef]) -> None:
        """What curation and the split made of each dataset."""

    def replays(self, general: RowsRef) -> None:
        """Answers of the untouched base that are trained."""

    def can_show(self, power: Power | None) -> None:
        """What the held-out rows can show, if it is known."""

    @contextmanager
    def lora_run(self, dataset: DatasetRef) -> Iterator[None]:
        """The next LoRA run, within the block."""
        yield

    def lora_run_done(self, made: LoraRun) -> None:
        """What the LoRA run made."""

    @contextmanager
    def cell(self, number: int, name: str, parameters: dict[str, str]) -> Iterator[None]:
        """A cell of a comparison, within the block."""
        yield

    def compared(self, report: BenchReport, last: dict[str, float]) -> None:
        """A comparison so far, and the figures of its last cell."""

    @contextmanager
    def sweep_cell(self, index: int, dataset: DatasetRef) -> Iterator[None]:
        """One combination of a sweep, within the block."""
        yield

    def sweep_cell_done(self, index: int, made: TrainResult, scores: Cell) -> None:
        """What it made."""

    def sweep_cell_failed(self, index: int, error: BackpropError) -> None:
        """It cannot be trained."""

    def swept(self, compared: Contrast | None, rows: int) -> None:
        """The comparison of all that could be trained, on so many rows."""

    def evaluated(self, cells: Row, base: Row) -> None:
        """The scores of an existing adapter."""

    def harnessed(self, base: Harnessed | None, made: Harnessed | None) -> None:
        """Scores of lm-evaluation-harness for the base and an adapter, if there are any."""

    def gated(self, report: GateReport, attempt: Attempt | None = None) -> None:
        """The gate's report on the last LoRA run, the result of `attempt`."""

    def exported(self, file: GGUFRef, fidelity: Fidelity | None) -> None:
        """A GGUF file."""

    def packaged(self, ref: PackageRef) -> None:
        """A package that other programs load."""

    def served(self, model: dict[str, str]) -> None:
        """A model in Ollama."""

    def concludes(self, reason: str, verdict: Status) -> None:
        """The result in a sentence, where it is no version."""


class Outcome(Notes):
    """The record of a flow run: `made` so far, and its `result`, which is kept whatever happens within the block."""

    audience: "Audience | None" = None

    def __init__(self, run_id: str, prepared: Prepared, store: Store, journal: RunJournal) -> None:
        live, line = prepared.live, prepared.spec.line
        self._prepared, self._store, self.journal = prepared, store, journal
        self._attempt: Attempt | None = None
        number = live.number if live and prepared.flow == "retrain" else None
        earlier = Lines(store).on_base(line, number, prepared.base)  # scores on another base do not compare
        self._rows: list[Row] = [version.cells for version in earlier]
        self._trained = new_tasks(earlier)
        self._result: RunResult | None = None
        self._sweep = SweepNotes(run_id, prepared)
        self.made = RunResult(
            run_id=run_id,
            flow=prepared.flow,
            line=line,
            version=live.number if live else None,
            status="finished",
            spec=prepared.spec.model_dump(mode="json"),
            defaults=prepared.defaults,
            base=BaseRecord(**prepared.base.model_dump(exclude={"bare"})),
            act=act_at_first(prepared),
            merged=located(prepared.adapter, store) if prepared.adapter else None,
        )

    @property
    def result(self) -> RunResult:
        """The result of a run that has ended."""
        assert self._result is not None
        return self._result

    def add(self, **fields: Any) -> None:
        """Note fields of the result."""
        self.made = self.made.model_copy(update=fields)

    def so_far(self, status: Status, error: BackpropError | None = None) -> RunResult:
        """The result as it is now, without secrets: it is printed, kept, and sent on."""
        made = self.made.model_copy(update={"status": status, "error": error and error_record(error)})
        return RunResult.model_validate(blank_json(made.model_dump(mode="json")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if lost := self._lost():
            self.journal.leave()
            raise lost from error
        coded = self._coded(error) if error else None
        status = self.made.status if coded is None else "interrupted" if isinstance(coded, STOPPED) else "failed"
        try:
            self._result = self.journal.finish(self.so_far(status, coded))
        except OSError as failed:  # the disk takes no result; what was made is in the store, and resuming finds it
            coded, error = coded or self._coded(failed), error or failed
        if coded:
            raise coded from error

    def _lost(self) -> BackpropError | None:
        """LeaseLost if another machine has taken the run over: its record is no longer for this process to write."""
        try:
            self._store.confirm(RUN + self.made.run_id)
        except LeaseLost as error:
            return self._coded(error)
        except StoreUnreachable:  # the result is kept in the journal
            return None
        return None

    def _coded(self, error: BaseException) -> BackpropError:
        return as_coded(error, self.made.run_id, self._prepared.flow)

    def staged(self, stage: StageRecord) -> None:
        """A stage that was called."""
        self.add(stages=[*self.made.stages, stage])
        self.journal.called(stage)

    def splits(self, rows: Split) -> None:
        if flow_info(self._prepared.flow).trains or self._prepared.flow == "promote":
            self.add(split=rows)
        for task, count in rows.not_scored.items():
            log.warning("%s: %d held-out rows are not scored, as the line was trained on them", task, count)

    def curated(self, sources: Sequence[Curated], datasets: Sequence[DatasetRef]) -> None:
        pairs = zip(sources, datasets, strict=True)
        self.journal.datasets([curated_report(*pair) for pair in pairs])

    def replays(self, general: RowsRef) -> None:
        if general not in self.made.general:
            self.add(general=[*self.made.general, general])

    def can_show(self, power: Power | None) -> None:
        if power:
            log.info(power.sentence)

    @contextmanager
    def lora_run(self, dataset: DatasetRef) -> Iterator[None]:
        """Its metrics go to a child of this run's record."""
        with self.journal.lora_run(self._lora_run_id(), len(self.made.runs), dataset):
            yield

    def _lora_run_id(self) -> str:
        return child_id(self.made.run_id, len(self.made.runs))

    def lora_run_done(self, made: LoraRun) -> None:
        cached = was_cached(self.made.stages, "train")
        record, matrix = run_record(self._lora_run_id(), made, cached=cached, store=self._store), self._scored(made)
        self.add(runs=[*self.made.runs, record], merged=record.merged, evaluation=matrix)
        self.journal.lora_run_done(record, matrix, made.trained.peak_memory_gib)

    @contextmanager
    def sweep_cell(self, index: int, dataset: DatasetRef) -> Iterator[None]:
        with self.journal.sweep_cell(self._sweep.run_id(index), self._prepared.cells[index], dataset):
            yield

    def sweep_cell_done(self, index: int, made: TrainResult, scores: Cell) -> None:
        self._sweep.done(index, made, cached=was_cached(self.made.stages, "train"))
        self.journal.sweep_cell_done(made, scores)

    def sweep_cell_failed(self, index: int, error: BackpropError) -> None:
        log.warning("%s: [%s] %s", in_words(self._prepared.cells[index].settings), error.code, error.message)
        self._sweep.failed(index, error)
        self.journal.sweep_cell_failed(error_record(error))

    def swept(self, compared: Contrast | None, rows: int) -> None:
        report = self._sweep.report(compared, rows)
        self.add(sweep=report, reason=report.reason)

    def _scored(self, made: LoraRun) -> Evaluation:
        """The matrix with one more row."""
        if made.champion:  # in place of its scores on earlier held-out rows: these compare with the next
            self._rows[-1] = {task: made.champion[task] for task in self._rows[-1]}
        self._rows.append(made.cells)
        self._trained.append([task for task in made.dataset.tasks if task in made.cells])
        return evaluation(
            tasks=list(dict.fromkeys(task for tasks in self._trained for task in tasks)),
            watch=[task for task in self._prepared.watched if task in made.cells],
            trained=self._trained,
            rows=self._rows,
            base=made.base,
            metric=self._prepared.spec.evaluation.metric,
        )

    @contextmanager
    def cell(self, number: int, name: str, parameters: dict[str, str]) -> Iterator[None]:
        """Its metrics go to a child of this run's record."""
        with self.journal.cell(child_id(self.made.run_id, number), name, parameters):
            yield

    def compared(self, report: BenchReport, last: dict[str, float]) -> None:
        self.add(bench=report, reason=report.advice)
        self.journal.metrics(0, last)

    def evaluated(self, cells: Row, base: Row) -> None:
        tasks, metric = list(cells), self._prepared.spec.evaluation.metric
        matrix = evaluation(tasks=tasks, watch=[], trained=[tasks], rows=[cells], base=base, metric=metric)
        self.add(evaluation=matrix)
        self.journal.evaluated(matrix)

    def harnessed(self, base: Harnessed | None, made: Harnessed | None) -> None:
        self.add(harness=harness_records(base, made) if base and made else [])

    def gated(self, report: GateReport, attempt: Attempt | None = None) -> None:
        self._attempt = attempt
        self.add(gate=report)
        self._accepts(report.accepted)
        for verdict in report.tasks:
            if verdict.too_small:
                log.warning("%s: %d held-out rows are too few to detect every allowed drop", verdict.task, verdict.rows)
        act = self._prepared.act
        if report.accepted:
            return
        if act and act.forced:
            self.add(act=act)
            log.warning("the gate rejected it (%s), but it is %s", report.reason, act.sentence)
        else:
            self._rejects(report.reason)

    def _accepts(self, accepted: bool) -> None:
        """Whether the adapter of the last LoRA run is accepted."""
        *before, last = self.made.runs
        self.add(runs=[*before, last.model_copy(update={"accepted": accepted})])

    def _rejects(self, reason: str) -> None:
        self.add(status="rejected")
        if self._attempt:
            self._attempt.note(reason, self._store)

    def decision(self) -> Decision | None:
        """The decision on what this run made, if there is one; also that of an earlier process."""
        path = self._store.layout.run(self.made.run_id).decision
        return Decision.model_validate_json(path.read_bytes()) if path.is_file() else None

    def decided(self, decision: Decision) -> bool:
        """Note the decision on the last LoRA run; whether its adapter may go live."""
        write_atomic(self._store.layout.run(self.made.run_id).decision, decision.model_dump_json())
        self.add(reason=decision.sentence)
        if decision.by == "person" and not decision.approved:
            self._rejects(f"by a person: {decision.reason}" if decision.reason else "by a person")
        if not decision.approved:
            self.add(status="rejected")
            self._accepts(False)
        return decision.approved

    def exported(self, file: GGUFRef, fidelity: Fidelity | None) -> None:
        self.add(gguf=[*self.made.gguf, gguf_record(file, fidelity, self._store)])

    def packaged(self, ref: PackageRef) -> None:
        self.add(packages=[*self.made.packages, package_record(ref, self._store)])

    def served(self, model: dict[str, str]) -> None:
        self.add(ollama=model)

    def concludes(self, reason: str, verdict: Status) -> None:
        self.add(reason=reason, status=verdict)


def act_at_first(prepared: Prepared) -> Act | None:
    """The manual promotion of a run; whether `promote` has to force it is for the gate to say."""
    act = prepared.act
    return act.model_copy(update={"forced": False}) if act and prepared.flow == "promote" else act


def error_record(error: BackpropError) -> ErrorRecord:
    """An error as it is recorded."""
    return ErrorRecord(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable)


def new_tasks(versions: Sequence[LineVersion]) -> list[list[str]]:
    """For each version of a line the tasks that it trained beyond the one before."""
    known: list[DatasetRef] = []
    found = []
    for version in versions:
        found.append([task for dataset in version.datasets[len(known) :] for task in dataset.tasks])
        known = version.datasets
    return found


def as_coded(error: BaseException, run_id: str, flow: str) -> BackpropError:
    """Any end of a run of a flow as a coded error that names it."""
    match error:
        case BackpropError():
            coded = error
        case KeyboardInterrupt() | SystemExit() | TerminationSignal():
            hint = "start it again" if not flow_info(flow).resumable else f"go on with: backprop resume {run_id}"
            coded = Interrupted(f"run {run_id} was stopped", hint=hint)
        case _:
            message = f"{type(error).__name__}: {error}"
            hint = "run it again with --verbose and report what it says"
            coded = system_error(error) or Unexpected(message, hint=hint)
    coded.run_id = run_id
    return coded
