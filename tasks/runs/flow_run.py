"""One flow run: its inputs, its worker, its stages, and the record of what it did."""

import hashlib
import importlib.util
import logging
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from pydantic import BaseModel

from backprop_core.errors import BackpropError, Interrupted, RunUnknown, TimeLimit, Unexpected, system_error
from backprop_core.evaluation.forgetting_matrix import Row, evaluation
from backprop_core.evaluation.gate import too_little
from backprop_core.lines.versions import Lines, LineVersion, Live
from backprop_core.models import base as bases
from backprop_core.runtime.redaction import blank_json, blank_logs
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import Act, Decision, GateReport
from backprop_core.schema.refs import (
    AdapterRef,
    BaseRecord,
    BaseRef,
    ChatTemplate,
    DatasetRef,
    Drift,
    ErrorRecord,
    Evaluation,
    Fidelity,
    GGUFRecord,
    GGUFRef,
    Harnessed,
    HarnessRecord,
    Located,
    PackageRecord,
    PackageRef,
    RowsRef,
    RunRecord,
    RunResult,
    Split,
    StageRecord,
    Status,
    TrainResult,
)
from backprop_core.schema.specs import RunSpec
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digests_in, stage_key
from backprop_core.store.leases import Lease
from backprop_core.store.locks import held
from backprop_core.worker.client import Worker
from tasks.runs import disk_space, rejections, resolve, retried_runs, sources, worker_process
from tasks.runs.line_splits import held_by, learned_by, of_run
from tasks.runs.progress import Progress, report
from tasks.runs.recomputed import Afresh
from tasks.runs.record import RunJournal
from tasks.runs.results import digest_in, gguf_record, harness_records, located, package_record, run_record, was_cached
from tasks.stages.cache_policy import is_recorded
from tasks.stages.labels import Labels, outcome
from tasks.stages.ollama import canary, register
from tasks.stages.parent_place import ParentPlace
from tasks.stages.stage_tasks import stage_task

if TYPE_CHECKING:
    from tasks.runs.notifications import Audience

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger(__name__)
STOPPED = (Interrupted, TimeLimit)  # ends that are no failures: `resume` goes on
Start = Callable[[Store], resolve.Prepared]


def new_run_id() -> str:
    """32 hex digits, made before the first log line."""
    return uuid.uuid4().hex


def child_id(run_id: str, index: int) -> str:
    """The run_id of a run's index-th LoRA run: the same again after a resume."""
    return hashlib.sha256(f"{run_id}/{index}".encode()).hexdigest()[:32]


@contextmanager
def recorded(start: Start, *, run_id: str | None, fresh: bool) -> Iterator["Run"]:
    """A run from its first log line to its result, which is kept whatever happens.

    `start` finds out what a new run starts from. With the run_id of an earlier run that one goes on instead, from what
    it committed; so does, without one, what an earlier try of the same flow run has left over. Either is `fresh` if it
    began so.
    """
    blank_logs()
    config = settings()
    store = Store(config.store_path)
    with ExitStack() as cleanup:
        cleanup.callback(store.close)
        cleanup.callback(worker_process.stop)
        cleanup.callback(sources.let_go)
        earlier = resolve.full_run_id(run_id, store) if run_id else retried_runs.left_over(store)
        full_id = earlier or new_run_id()
        prepared = resolve.load(full_id, store) if earlier else start(store).model_copy(update={"fresh": fresh})
        with Run(full_id, prepared, config, store) as run:
            retried_runs.note(full_id, store)
            yield run


class LoraRun:
    """One of a run's LoRA runs, while it goes on."""

    def __init__(self, run: "Run", index: int, dataset: DatasetRef) -> None:
        self.run_id = child_id(run.run_id, index)
        self._run, self._dataset = run, dataset

    def done(
        self,
        trained: TrainResult,
        merged: AdapterRef,
        drift: Drift | None,
        cells: Row,
        base: Row,
        champion: Row | None = None,
    ) -> None:
        """Note what came out: the adapters, what the merge did, and the scores of the merged one.

        `champion` are those of the line's champion, on the same held-out rows.
        """
        run = self._run
        if champion:
            run.scored_again(champion)
        cached = was_cached(run.stages, "train")
        record = run_record(self.run_id, self._dataset, trained, merged, drift, cached=cached, store=run.store)
        run.runs.append(record)
        run.merged = run.runs[-1].merged
        run.evaluation = run.scored(cells, base)
        run.record.lora_run_done(run.runs[-1], run.evaluation)


class Run:
    """What the flow's body and the tasks see of it. Made by `recorded`."""

    def __init__(self, run_id: str, prepared: resolve.Prepared, config: Settings, store: Store) -> None:
        self.run_id = run_id
        self.prepared = prepared
        self.settings = config
        self.store = store
        self.stages: list[StageRecord] = []
        self.runs: list[RunRecord] = []
        self.gguf: list[GGUFRecord] = []
        self.packages: list[PackageRecord] = []
        self.written: list[Path] = []
        self.ollama: dict[str, str] | None = None
        self.hub: dict[str, str] | None = None
        self.evaluation: Evaluation | None = None
        self.harness: list[HarnessRecord] = []
        self.record = RunJournal(run_id, prepared, config, store)
        self.merged: Located | None = located(prepared.adapter, store) if prepared.adapter else None
        self.outcome: RunResult | None = None
        self.version: int | None = prepared.live.number if prepared.live else None
        self.split: Split | None = None
        self.gate: GateReport | None = None
        self.act: Act | None = prepared.act
        if self.act and prepared.flow == "promote":  # the gate says whether it has to be forced
            self.act = self.act.model_copy(update={"forced": False})
        self.audience: Audience | None = None
        self._labels = Labels(prepared.live.version.heldout if prepared.live else {})
        self._verdict: Status = "finished"
        self._reason: str | None = None
        self._device_said = False
        self._attempt: rejections.Attempt | None = None
        self._afresh = Afresh(store.layout.run(run_id).fresh, asked=prepared.fresh)
        limit = prepared.spec.max_seconds if flow_info(prepared.flow).trains else None
        self._deadline = time.monotonic() + limit if limit else math.inf
        earlier = Lines(store).ancestors(prepared.spec.line, self.version) if prepared.flow == "retrain" else []
        self._rows: list[Row] = [version.cells for version in earlier]
        self._trained = new_tasks(earlier)

    @property
    def spec(self) -> RunSpec:
        return self.prepared.spec

    @property
    def base(self) -> BaseRef:
        return self.prepared.base

    @cached_property
    def template(self) -> ChatTemplate:
        """What the base writes conversations by."""
        return bases.chat_template(self.base)

    @property
    def watched(self) -> list[str]:
        """Tasks that are only scored: those of the line, and those that this run brings. What is trained is none."""
        live = self.prepared.live.version if self.prepared.live else None
        watched = [*(live.watch if live else []), *(source.task for source in self.prepared.watch)]
        trained = {dataset.task for dataset in live.datasets} if live else set()
        trained |= {source.task for source in self.prepared.sources}
        return [task for task in dict.fromkeys(watched) if task not in trained]

    @property
    def line(self) -> Live | None:
        """The champion whose line's rows are the run's too."""
        return self.prepared.live if flow_info(self.prepared.flow).rows == "line" else None

    @property
    def held(self) -> dict[str, list[RowsRef]]:
        """What that line has ever held out, by task."""
        return held_by(self.spec.line, self.line, self.store) if self.line else {}

    @property
    def learned(self) -> list[RowsRef]:
        """What that line has been trained on."""
        datasets = self.line.version.datasets if self.line else []
        return sorted((dataset.train for dataset in datasets), key=lambda rows: rows.digest)

    @property
    def earlier(self) -> Split | None:
        """The rows of the earlier run that this one is about; None if it has its own."""
        prepared, rows = self.prepared, flow_info(self.prepared.flow).rows
        if rows not in ("earlier", "earlier if known") or not (prepared.of and prepared.sources):
            return None
        found = of_run(prepared.of, self.store)
        if found is None and rows == "earlier":
            raise RunUnknown(
                f"which rows run {prepared.of} trained is not known any more, so which may score is not either",
                hint="score it on rows it was not trained on: backprop evaluate REF --data FILE",
            )
        return found

    @property
    def can_read_gguf(self) -> bool:
        """Whether llama.cpp is here to answer from a GGUF file."""
        return importlib.util.find_spec("llama_cpp") is not None

    def __enter__(self) -> Self:
        self._lease = Lease(self.run_id, self.store, before_wait=worker_process.give_up)
        self.prepared = resolve.begun(self.prepared, self.run_id, self.store)
        log.info("run_started run_id=%s", self.run_id)
        get_run_logger().info("run_started run_id=%s", self.run_id)  # on the page of the flow run
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        coded = as_coded(error, self.run_id, self.prepared.flow) if error else None
        status = self._verdict if coded is None else "interrupted" if isinstance(coded, STOPPED) else "failed"
        if coded is None:
            resolve.mark_finished(self.prepared, self.store)
        try:
            self.outcome = self.record.finish(self.result(status, coded))
        except OSError as failed:  # the disk takes no result; what was made is in the store, and resuming finds it
            coded = coded or as_coded(failed, self.run_id, self.prepared.flow)
            error = error or failed
        finally:
            if coded is None:
                sources.free(self.run_id, self.store)
            self._lease.end(finished=coded is None)
        if coded:
            raise coded from error

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        """Run a stage through Prefect, or take its result from the cache."""
        begin = time.monotonic()
        key = stage_key(stage.name, parameters)
        again = self._afresh.is_due(key)
        self._lease.add(key)
        if stage.runs_in == "worker" and not is_recorded(self.store, key):
            # the process that has the device now may be computing this very stage
            with self.record.waiting("device"):
                self._worker(stage.name).wait_for_slot(self._deadline)
            begin = time.monotonic()
        if time.monotonic() > self._deadline and (again or not is_recorded(self.store, key)):
            raise self._late(f" before {stage.name}")
        if again or not is_recorded(self.store, key):
            disk_space.check(
                self.spec, self.store.root, stage=stage.name, kind=disk_space.kind_of(stage.name, parameters)
            )
        if stage.name == "train" and again and not self._afresh.has_begun(key):
            # another run that trains the same now keeps its checkpoints until it is done
            with held(self.store.lock(key), "another run trains the same"):
                shutil.rmtree(self.store.layout.checkpoints(key), ignore_errors=True)
        self._afresh.begin(key)
        label = self._labels.name(stage.name, parameters)
        task = stage_task(
            stage,
            lambda given: self._carry_out(stage, given),
            refresh_cache=again,
            result_storage=self.store.layout.cache_results,
            task_run_name=label,
        )
        state = task(**parameters, return_state=True)
        result: R = state.result()
        self._afresh.end(key)
        for name in digests_in(result.model_dump_json()):
            self._lease.add(name)
        shutil.rmtree(
            self.store.layout.checkpoints(key), ignore_errors=True
        )  # only now: Prefect has noted what it made
        self.stages.append(
            StageRecord(
                stage=stage.name,
                key=key,
                cached=state.name == "Cached",
                seconds=round(time.monotonic() - begin, 3),
                digest=digest_in(result),
            )
        )
        self._labels.learn(parameters, result)
        took = "from the cache" if self.stages[-1].cached else f"{self.stages[-1].seconds:.1f} s"
        get_run_logger().info("%s (%s)", ": ".join(filter(None, [label, outcome(result)])), took)
        return result

    def _carry_out(self, stage: Stage[R], parameters: dict[str, Any]) -> R:
        """Run a stage where it is declared to run."""
        key = stage_key(stage.name, parameters)
        if stage.runs_in == "worker":
            return self._work(stage, key, parameters)
        return stage.carry_out(parameters, ParentPlace(self.store, key, stage.name))

    def _work(self, stage: Stage[R], key: str, parameters: dict[str, Any]) -> R:
        """Run a stage in the worker process."""
        if stage.name == "train":
            self._say_device()
        report(Progress(stage=stage.name, done=0, total=0))
        try:
            return self._worker(stage.name).call(
                stage,
                key=key,
                on_event=lambda event: self._event(stage.name, event),
                deadline=self._deadline,
                **parameters,
            )
        except Interrupted as error:
            if time.monotonic() > self._deadline:
                raise self._late(f": {error.message}") from error
            raise

    def _say_device(self) -> None:
        """Log the device that was chosen, once, when a training begins."""
        for choice in self.prepared.defaults:
            if choice.field == "training.device" and not self._device_said:
                self._device_said = True
                log.info("training runs on the CPU: %s", choice.reason)

    def _late(self, where: str) -> TimeLimit:
        return TimeLimit(
            f"time limit of {self.spec.max_seconds:g} s reached{where}",
            hint=f"continue with: backprop resume {self.run_id}",
        )

    def _worker(self, stage: str) -> Worker:
        return worker_process.worker(self.settings, self.spec.training, stage)

    def _event(self, stage: str, event: dict[str, Any]) -> None:
        if stage == "train":
            self.record.metrics(event["done"], event["values"])
        report(Progress(stage=stage, **event))

    @contextmanager
    def lora_run(self, index: int, dataset: DatasetRef) -> Iterator[LoraRun]:
        """One LoRA run: its metrics go to a child of this run's record."""
        lora_run = LoraRun(self, index, dataset)
        with self.record.lora_run(lora_run.run_id, index, dataset):
            yield lora_run

    def scored_again(self, champion: Row) -> None:
        """Put these scores of the champion where those on earlier held-out rows were: they compare with the next."""
        self._rows[-1] = {task: champion[task] for task in self._rows[-1]}

    def scored(self, cells: Row, base: Row) -> Evaluation:
        """The matrix with one more row."""
        self._rows.append(cells)
        self._trained.append([self.runs[-1].dataset.task])
        return evaluation(
            tasks=list(dict.fromkeys(task for tasks in self._trained for task in tasks)),
            watch=[task for task in self.watched if task in cells],
            trained=self._trained,
            rows=self._rows,
            base=base,
            metric=self.spec.evaluation.metric,
        )

    def evaluated(self, cells: Row, base: Row) -> None:
        """Note the scores of an adapter that was there."""
        tasks, metric = list(cells), self.spec.evaluation.metric
        self.evaluation = evaluation(tasks=tasks, watch=[], trained=[tasks], rows=[cells], base=base, metric=metric)
        self.record.evaluated(self.evaluation)

    def harnessed(self, base: Harnessed | None, made: Harnessed | None) -> None:
        """Note what lm-evaluation-harness says of the base and of an adapter, if it was asked."""
        self.harness = harness_records(base, made) if base and made else []

    def waits(self, rows: RowsRef) -> bool:
        """Whether too few of the rows are new to the line; noted, and then there is nothing to do."""
        if rows.rows >= self.spec.min_new_rows:
            return False
        self.concludes(
            f"{rows.rows} rows are new to line {self.spec.line}; it waits for {self.spec.min_new_rows}", "unchanged"
        )
        return True

    @property
    def learned_before(self) -> list[RowsRef]:
        """What the adapter of an earlier run has been trained on."""
        return learned_by(self.prepared.of, self.store) if self.prepared.of else []

    def splits(self, rows: Split) -> None:
        """Note what is trained and what scores: by this run, or by the one that is promoted."""
        if flow_info(self.prepared.flow).trains or self.prepared.flow == "promote":
            self.split = rows
        for task, count in rows.not_scored.items():
            log.warning("%s: %d held-out rows are not scored, as the line was trained on them", task, count)

    def cannot_tell(self, heldout: dict[str, RowsRef]) -> bool:
        """Whether the gate could not tell anything by so few held-out rows; noted, and then nothing is trained."""
        reason = too_little({task: rows.rows for task, rows in heldout.items()}, self.watched, self.spec.gate)
        if reason:
            self.concludes(f"{reason}; line {self.spec.line} waits for more rows", "unchanged")
        return bool(reason)

    def was_rejected(self, rows: RowsRef, heldout: dict[str, RowsRef]) -> bool:
        """Whether the same was rejected before; noted, and then it is not trained again, unless it is asked afresh."""
        self._attempt = rejections.attempt(self.run_id, self.prepared, rows, heldout)
        earlier = self._attempt.earlier(self.store)
        if earlier is None or self.prepared.fresh:
            return False
        self.concludes(earlier.sentence, "unchanged")
        return True

    def concludes(self, reason: str, verdict: Status) -> None:
        """Note in a sentence what came out, where that is no version."""
        self._verdict, self._reason = verdict, reason

    def gated(self, report: GateReport) -> bool:
        """Note what the gate says of the last LoRA run; whether its adapter may go live."""
        self.gate = report
        self.runs[-1] = self.runs[-1].model_copy(update={"accepted": report.accepted})
        for verdict in report.tasks:
            if verdict.too_small:
                log.warning("%s: %d held-out rows are too few to detect every allowed drop", verdict.task, verdict.rows)
        if report.accepted:
            return True
        if self.act and self.prepared.act and self.prepared.act.forced:
            self.act = self.prepared.act
            log.warning("the gate rejected it (%s), but it is %s", report.reason, self.act.sentence)
            return True
        self._rejects(report.reason)
        return False

    def _rejects(self, reason: str) -> None:
        self._verdict = "rejected"
        if self._attempt:
            self._attempt.note(reason, self.store)

    def decision(self) -> Decision | None:
        """What was said of what this run made, if it was asked; also in an earlier process."""
        path = self.store.layout.run(self.run_id).decision
        return Decision.model_validate_json(path.read_bytes()) if path.is_file() else None

    def decided(self, decision: Decision) -> bool:
        """Note what is said of the last LoRA run; whether its adapter may go live."""
        write_atomic(self.store.layout.run(self.run_id).decision, decision.model_dump_json())
        self._reason = decision.sentence
        if decision.by == "person" and not decision.approved:
            self._rejects(f"by a person: {decision.reason}" if decision.reason else "by a person")
        if not decision.approved:
            self._verdict = "rejected"
            self.runs[-1] = self.runs[-1].model_copy(update={"accepted": False})
        return decision.approved

    def exported(self, file: GGUFRef, fidelity: Fidelity | None) -> None:
        """Note a GGUF file."""
        self.gguf.append(gguf_record(file, fidelity, self.store))

    def packaged(self, ref: PackageRef) -> None:
        """Note what other programs load."""
        self.packages.append(package_record(ref, self.store))

    def serve(self, heldout: RowsRef) -> None:
        """Make the first GGUF file the model of Ollama's that is asked for."""
        prompt = canary(heldout, self.store)
        answer = register(Path(self.gguf[0].path), self.spec.export, prompt)
        self.ollama = {"model": f"{self.spec.export.ollama}:latest", "prompt": prompt, "answer": answer}

    def result(self, status: Status, error: BackpropError | None) -> RunResult:
        """What this run did, as far as it came, without secrets: it is printed, kept, and sent on."""
        made = RunResult(
            run_id=self.run_id,
            flow=self.prepared.flow,
            line=self.spec.line,
            version=self.version,
            status=status,
            reason=self._reason,
            spec=self.spec.model_dump(mode="json"),
            defaults=self.prepared.defaults,
            base=BaseRecord(**self.base.model_dump(exclude={"bare"})),
            runs=self.runs,
            split=self.split,
            evaluation=self.evaluation,
            harness=self.harness,
            gate=self.gate,
            act=self.act,
            merged=self.merged,
            gguf=self.gguf,
            packages=self.packages,
            written=[str(path) for path in self.written],
            ollama=self.ollama,
            hub=self.hub,
            stages=self.stages,
            error=ErrorRecord(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable)
            if error
            else None,
        )
        return RunResult.model_validate(blank_json(made.model_dump(mode="json")))


def new_tasks(versions: Sequence[LineVersion]) -> list[list[str]]:
    """For each version of a line the tasks that it trained beyond the one before."""
    known: list[DatasetRef] = []
    found = []
    for version in versions:
        found.append([dataset.task for dataset in version.datasets[len(known) :]])
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
