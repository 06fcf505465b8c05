"""Records a run: journal (sent to MLflow), result in the store, and artifacts on the Prefect flow run."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, date, datetime
from typing import Literal

from backprop_core.runtime.settings import Settings
from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.refs import Cell, DatasetRef, ErrorRecord, Evaluation, RunRecord, RunResult, TrainResult
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs import prefect_artifacts, worker_process
from tasks.runs.prepared_run import Prepared, SweepCell
from tasks.runs.record_names import begun_name, ended_name, lora_run_name
from tasks.runs.results import dataset_summary
from tasks.runs.run_costs import costs
from tasks.tracking import Sender, mlflow_run_id, run_link
from tasks.tracking.journal import Journal
from tasks.tracking.run_parameters import dataset_parameters, run_parameters

HEAD_START = 1.0  # seconds to wait before importing mlflow while a worker imports torch
PACKAGES = ("torch", "transformers", "peft", "prefect", "mlflow-skinny")


class RunJournal:
    """The record of one run and its LoRA runs, written to the journal and sent to MLflow during the run."""

    def __init__(self, run_id: str, prepared: Prepared, config: Settings, store: Store) -> None:
        self._run_id, self._prepared, self._config, self._store = run_id, prepared, config, store
        self._journal = Journal(config.journal_path, run_id)
        self._child: Journal | None = None
        self._datasets: Sequence[CuratedReport] = ()
        self._params = run_parameters(prepared.spec, [choice.field for choice in prepared.defaults])
        self._started()
        self._sender = Sender(config, after=HEAD_START if worker_process.is_running() else 0)
        self._sender.start()

    def _started(self) -> None:
        spec = self._prepared.spec
        name = begun_name(self._prepared, today())
        self._journal.start(line=spec.line, name=name, params=self._params, tags=tags())
        self._journal.document("spec.json", spec.model_dump(mode="json"))
        self._journal.document("inputs.json", self._prepared.model_dump(mode="json"))

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
        child.inputs([summary])
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
        child.inputs([summary])
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

    def lora_run_done(self, record: RunRecord, evaluation: Evaluation) -> None:
        """Record a LoRA run's adapters, and its row of the matrix."""
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
        self._child.metrics(record.steps, trained | speed | kept)
        if record.taken is not None:
            self._journal.metrics(len(evaluation.matrix), {"merge.taken": record.taken})
        if record.drift:
            self._journal.drift(len(evaluation.matrix), record.drift)
        self.evaluated(evaluation)

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
        self._journal.costs(costs(result))
        self._journal.inputs([run.dataset for run in result.runs])
        self._journal.result(result)
        try:
            self._keep(result)  # before the journal is free: what MLflow gets about the line is read from it
        finally:
            self._journal.close()
        self._sender.finish()
        result = result.model_copy(update={"mlflow_run_id": mlflow_run_id(self._config, self._run_id)})
        self._keep(result)
        if prefect_artifacts.flow_run_id():
            link = run_link(self._config, self._run_id)
            prefect_artifacts.publish(result, self._datasets, namespace=self._config.namespace, mlflow_link=link)
        return result

    def _keep(self, result: RunResult) -> None:
        write_atomic(self._store.layout.run(self._run_id).result, result.model_dump_json())


def today() -> date:
    return datetime.now(UTC).date()


def tags() -> dict[str, str]:
    """Tags with package versions and the Prefect flow run."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    flow_run = prefect_artifacts.flow_run_id()
    return versions | ({"prefect.flow_run_id": flow_run} if flow_run else {})
