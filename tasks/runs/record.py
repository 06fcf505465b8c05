"""Records a run: journal (sent to MLflow), result in the store, and artifacts on the Prefect flow run."""

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from backprop_core.runtime.settings import Settings
from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    Answers,
    Cell,
    DatasetRef,
    ErrorRecord,
    Evaluation,
    RunRecord,
    RunResult,
    StageRecord,
    TrainResult,
    artifacts_in,
)
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs import prefect_artifacts, run_log, worker_process
from tasks.runs.prepared_run import Prepared, SweepCell
from tasks.runs.record_names import begun_name, ended_name, lora_run_name
from tasks.runs.recorded_spec import without_passwords
from tasks.runs.results import dataset_summary
from tasks.runs.run_costs import costs
from tasks.tracking import Sender, mlflow_run_id, run_link
from tasks.tracking.journal import Journal
from tasks.tracking.run_parameters import dataset_parameters, run_parameters
from tasks.tracking.trackers.process import Trackers

HEAD_START = 1.0  # seconds to wait before importing mlflow while a worker imports torch
ENERGY = "gpu_energy_wh"  # metric of a training: since its first reading
QUOTES = (Answers, GateReport)  # they quote what models have written, and are made again
PACKAGES = ("torch", "transformers", "peft", "prefect", "mlflow-skinny")


class RunJournal:
    """The record of one run and its LoRA runs, written to the journal and sent to MLflow during the run."""

    def __init__(self, run_id: str, prepared: Prepared, config: Settings, store: Store) -> None:
        self._run_id, self._prepared, self._config, self._store = run_id, prepared, config, store
        self._trackers = Trackers(config, run_id)
        self._journal = Journal(config.journal_path, run_id)
        self._child: Journal | None = None
        self._energy: dict[str, float] = {}  # Wh of each training since it was last started
        self._datasets: Sequence[CuratedReport] = ()
        self._params = run_parameters(prepared.spec, [choice.field for choice in prepared.defaults])
        pairs = zip(prepared.sources, without_passwords(prepared.spec).datasets, strict=False)
        self._places = {source.name: dataset.path for source, dataset in pairs}
        self._started()
        self._trackers.start()
        self._sender = Sender(config, after=HEAD_START if worker_process.is_running() else 0)
        self._sender.start()

    def _started(self) -> None:
        spec = self._prepared.spec
        name = begun_name(self._prepared, today())
        self._journal.start(line=spec.line, name=name, params=self._params, tags=tags())
        self._journal.document("spec.json", spec.model_dump(mode="json"))
        self._journal.document("inputs.json", self._prepared.model_dump(mode="json"))

    def sources(self, prepared: Prepared) -> None:
        """Have MLflow copy the files that the run reads, unless personal data is removed from them."""
        spec = prepared.spec
        specs = [*spec.datasets, *spec.evaluation.watch]
        for dataset, source in zip(specs, [*prepared.sources, *prepared.watch], strict=False):
            if dataset.curation.personal_data in ("off", "flag"):
                for ref in filter(None, (source.data, source.heldout)):
                    self._journal.keep_source(ref)

    def stage_done(self, key: str, result: BaseModel) -> None:
        """Record what a stage returned, and have MLflow copy its artifacts."""
        layout = self._store.layout
        for ref in artifacts_in(result):
            self._journal.keep(ref, layout.artifact(ref.digest), self._store.record(ref.digest))
        if not isinstance(result, QUOTES):
            with suppress(FileNotFoundError):
                record, returned = (path.read_bytes() for path in (layout.cache_key(key), layout.cache_result(key)))
                self._journal.staged(key, json.loads(record), json.loads(returned))

    def checkpoint(self, key: str, path: Path | None) -> None:
        """Have MLflow copy the newest checkpoint of a training; None once it is finished."""
        self._journal.checkpoint(key, path)

    def datasets(self, reports: Sequence[CuratedReport]) -> None:
        """Record what was made of the run's datasets."""
        self._datasets = reports
        if reports:
            self._journal.datasets(reports)

    @contextmanager
    def lora_run(self, run_id: str, index: int, dataset: DatasetRef) -> Iterator[None]:
        """Record a LoRA run within the block; it gets the training metrics."""
        self._child = child = self._journal.child(run_id)
        spec, summary = self._prepared.spec, dataset_summary(dataset)
        name = lora_run_name(dataset.name, index, len(spec.datasets))
        child.start(line=spec.line, name=name, params=dataset_parameters(summary, self._params))
        child.inputs([summary], self._places)
        yield
        child.end("finished")
        self._child = None

    @contextmanager
    def cell(self, run_id: str, name: str, parameters: dict[str, str]) -> Iterator[None]:
        """Record a cell of a comparison within the block; it gets the metrics of its trainings."""
        self._child = child = self._journal.child(run_id)
        child.start(line=self._prepared.spec.line, name=name, params=self._params | parameters)
        yield
        child.end("finished")
        self._child = None

    @contextmanager
    def sweep_cell(self, run_id: str, cell: SweepCell, dataset: DatasetRef) -> Iterator[None]:
        """Record one combination of a sweep within the block; it gets the training metrics."""
        self._child = child = self._journal.child(run_id)
        spec = self._prepared.spec
        summary, own = dataset_summary(dataset), spec.model_copy(update={"training": cell.training})
        params = dataset_parameters(summary, run_parameters(own, cell.settings))
        name = ", ".join(f"{name.removeprefix('training.')}={value}" for name, value in cell.settings.items())
        child.start(line=spec.line, name=name, params=params)
        child.inputs([summary], self._places)
        yield
        child.end("finished")
        self._child = None

    def sweep_cell_done(self, made: TrainResult, cell: Cell) -> None:
        """Record what one combination made, and its scores."""
        assert self._child is not None
        self._child.tags({"backprop.tuned": made.adapter.digest})
        speed = {"tokens_per_second": made.tokens / made.seconds} if made.seconds else {}
        trained = {"train_loss": made.train_loss, "seconds": made.seconds, "trained_tokens": float(made.tokens)}
        names = ("token_accuracy", "exact_match", "loss")
        scores = {f"sweep.{name}": float(getattr(cell.scores, name)) for name in names}
        rated = {f"sweep.{cell.rating.metric}": cell.rating.score} if cell.rating else {}
        self._child.metrics(made.steps, trained | speed | scores | rated)

    def sweep_cell_failed(self, error: ErrorRecord) -> None:
        """Record why one combination cannot be trained."""
        assert self._child is not None
        self._child.end("failed", error)
        self._child = None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record metrics of the current training."""
        assert self._child is not None
        self._child.metrics(step, values)
        if ENERGY in values:
            self._energy[self._child.run_id] = values[ENERGY]

    def lora_run_done(self, record: RunRecord, evaluation: Evaluation, peak: float | None) -> None:
        """Record a LoRA run's adapters, its peak of memory in GiB, and its row of the matrix."""
        assert self._child is not None
        self._child.tags(
            {
                "backprop.tuned": record.tuned.digest,
                "backprop.merged": record.merged.digest,
                "backprop.cached": str(record.cached).lower(),
            }
        )
        speed = {"tokens_per_second": record.tokens / record.seconds} if record.seconds else {}
        trained = {"train_loss": record.train_loss, "seconds": record.seconds, "trained_tokens": float(record.tokens)}
        kept = {"best_step": float(record.kept.step), "best_heldout_loss": record.kept.loss} if record.kept else {}
        memory = {} if peak is None else {"peak_memory_gib": peak}
        self._child.metrics(record.steps, trained | speed | kept | memory)
        if record.taken is not None:
            self._journal.metrics(len(evaluation.matrix), {"merge.taken": record.taken})
        if record.drift:
            self._journal.drift(len(evaluation.matrix), record.drift)
        self.evaluated(evaluation)

    def called(self, stage: StageRecord) -> None:
        """Record a stage that was called."""
        self._journal.called(stage)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Record the current forgetting matrix."""
        self._journal.evaluation(evaluation)

    def waiting(self, on: Literal["person", "device"]) -> AbstractContextManager[None]:
        """Record that the run waits within the block, for approval or for the device."""
        return self._journal.waiting(on)

    def finish(self, result: RunResult) -> RunResult:
        """Record the result in MLflow, in the store and on the Prefect flow run."""
        if self._child:
            self._child.end(result.status, result.error)
        if name := ended_name(result, today()):
            self._journal.name(name)
        self._journal.describe(prefect_artifacts.text(result))
        energy = {"cost.energy_wh": sum(self._energy.values())} if self._energy else {}
        self._journal.costs(costs(result) | energy)
        self._journal.inputs([run.dataset for run in result.runs], self._places)
        self._journal.document("log.json", run_log.to_send(self._store.layout.run(self._run_id).log))
        self._journal.result(result)
        try:
            self._keep(result)  # before the journal is free: what MLflow gets about the line is read from it
        finally:
            self._journal.close()
        self._send_rest()
        result = result.model_copy(update={"mlflow_run_id": mlflow_run_id(self._config, self._run_id)})
        self._keep(result)
        if prefect_artifacts.flow_run_id():
            link = run_link(self._config, self._run_id)
            prefect_artifacts.publish(result, self._datasets, namespace=self._config.namespace, mlflow_link=link)
        return result

    def leave(self) -> None:
        """End the record here: another machine continues it."""
        self._journal.close()
        self._send_rest()

    def _send_rest(self) -> None:
        self._trackers.end()
        self._sender.finish()
        self._trackers.finish()

    def _keep(self, result: RunResult) -> None:
        write_atomic(self._store.layout.run(self._run_id).result, result.model_dump_json())


def today() -> date:
    return datetime.now(UTC).date()


def tags() -> dict[str, str]:
    """Tags with package versions and the Prefect flow run."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    flow_run = prefect_artifacts.flow_run_id()
    return versions | ({"prefect.flow_run_id": flow_run} if flow_run else {})
