"""Writes lines of a journal to an MLflow run: metrics, parameters, tags, artifacts. Idempotent."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.refs import DatasetSummary, Evaluation, Located, Status
from tasks.tracking.connection import LINE
from tasks.tracking.journal_lines import (
    AnyLine,
    Described,
    Directory,
    Document,
    Ended,
    Evaluated,
    Inputs,
    Measured,
    Started,
    Tagged,
)
from tasks.tracking.plots import forgetting_matrix

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

T = TypeVar("T")
RUN_ID, ROOT, ROLE, STATUS = "backprop.run_id", "backprop.root", "backprop.role", "backprop.status"
DATASETS, ERROR = "backprop.datasets", "backprop.error"
MLFLOW_STATUS: dict[Status, str] = {
    "finished": "FINISHED",
    "unchanged": "FINISHED",
    "rejected": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "running": "RUNNING",
}
LARGEST_UPLOAD = 2**30  # bytes; what is larger is named by digest and place
LONGEST_NAME = 250
LONGEST_DATASET_DIGEST = 36


def find_or_create(client: "MlflowClient", experiment: str, line: Started, *, parent: str | None) -> str:
    """MLflow's id of the run: looked up by our tag, also among deleted runs, before it is made."""
    from mlflow.entities import ViewType

    by_tag = f"tags.`{RUN_ID}` = '{line.run}'"
    for run in client.search_runs([experiment], by_tag, run_view_type=ViewType.ALL, max_results=1):
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(run.info.run_id)
        return str(run.info.run_id)
    tags = {RUN_ID: line.run, ROOT: line.parent or line.run, ROLE: "child" if line.parent else "parent"}
    nested = {"mlflow.parentRunId": parent} if parent else {}
    made = client.create_run(experiment, line.time, {**tags, **nested, LINE: line.line}, line.name)
    return str(made.info.run_id)


def deliver(client: "MlflowClient", run: str, lines: Sequence[AnyLine]) -> None:
    """Write all these lines to one run, its status last."""
    log_batches(client, run, lines)
    files = {(line.kind, getattr(line, "name", "")): line for line in lines}
    for line in files.values():
        log_file(client, run, line)
    states = [line for line in lines if isinstance(line, Started | Ended)]
    if states:
        set_state(client, run, states[-1])


def log_batches(client: "MlflowClient", run: str, lines: Sequence[AnyLine]) -> None:
    """Write metrics, parameters and tags, in batches of MLflow's maximum size."""
    from mlflow.entities import Param, RunTag

    labels: dict[str, str] = {}
    params: dict[str, str] = {}
    for line in lines:
        labels |= tags_of(line)
        params |= line.params if isinstance(line, Started) else {}
    metrics = slices([metric for line in lines if isinstance(line, Measured) for metric in metrics_of(line)], 800)
    some_params = slices([Param(name, value) for name, value in named(params).items()], 100)
    some_tags = slices([RunTag(name, value) for name, value in named(labels).items()], 100)
    for batch in zip_longest(metrics, some_params, some_tags, fillvalue=()):
        client.log_batch(run, *batch)


def tags_of(line: AnyLine) -> dict[str, str]:
    match line:
        case Started() | Tagged():
            return line.tags
        case Inputs():
            return {DATASETS: json.dumps([dataset.name for dataset in line.datasets], ensure_ascii=False)}
        case _:
            return {}


def metrics_of(line: Measured) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(name, value, line.time, line.step) for name, value in named(line.values).items()]


def named(values: Mapping[str, T]) -> dict[str, T]:
    """Metrics with names that MLflow accepts."""
    return {re.sub(r"[^\w.\- ]", "_", name)[:LONGEST_NAME]: value for name, value in values.items()}


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def log_file(client: "MlflowClient", run: str, line: AnyLine) -> None:
    match line:
        case Inputs():
            client.log_inputs(run, [dataset_input(one, line.places.get(one.name)) for one in line.datasets])
        case Document():
            client.log_text(run, json.dumps(line.value, ensure_ascii=False, indent=1), line.name)
        case Described():
            log_datasets(client, run, line.datasets)
        case Directory():
            log_directory(client, run, line.name, line.artifact)
        case Evaluated():
            log_matrix(client, run, line.evaluation)


def log_datasets(client: "MlflowClient", run: str, reports: Sequence[CuratedReport]) -> None:
    """Log what was made of the run's datasets, as JSON and as a page."""
    from backprop_core.data.report_page import curated_page

    documents = [report.model_dump(mode="json") for report in reports]
    client.log_text(run, json.dumps(documents, ensure_ascii=False, indent=1), "dataset-report.json")
    client.log_text(run, curated_page(reports), "dataset-report.html")


def log_directory(client: "MlflowClient", run: str, name: str, artifact: Located) -> None:
    """Log an artifact's digest and location, and its files if they exist and are not too large."""
    directory = Path(artifact.path)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    client.set_tag(run, f"backprop.{name}", artifact.digest)
    client.set_tag(run, f"backprop.{name}.uri", directory.as_uri())
    if sum(path.stat().st_size for path in files) <= LARGEST_UPLOAD:
        for path in files:
            client.log_artifact(run, str(path), (Path(name) / path.relative_to(directory).parent).as_posix())


def log_matrix(client: "MlflowClient", run: str, evaluation: Evaluation) -> None:
    """Log the forgetting matrix as an MLflow table and as a plot."""
    client.log_text(run, json.dumps(table(evaluation), ensure_ascii=False), "matrix.json")
    client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": "matrix.json", "type": "table"}]))
    with tempfile.TemporaryDirectory() as directory:
        plot = Path(directory) / "forgetting.png"
        plot.write_bytes(forgetting_matrix(evaluation))
        client.log_artifact(run, str(plot))


def table(evaluation: Evaluation) -> dict[str, Any]:
    """Columns and rows: the base first, then the runs from 1; null where a task came later."""
    rows = [["base", *evaluation.base], *([str(run), *row] for run, row in enumerate(evaluation.matrix, 1))]
    return {"columns": ["after run", *evaluation.tasks], "data": rows}


def dataset_input(dataset: DatasetSummary, place: str | None) -> "DatasetInput":
    """A dataset as MLflow's: `place` is where it was read, in older records only the store."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": place or f"store:{dataset.digest}"})
    profile = dataset.model_dump_json(include={"train_rows", "heldout_rows", "dropped", "not_trained"})
    digest = dataset.digest[:LONGEST_DATASET_DIGEST]
    kind = "store" if place is None else urlsplit(place).scheme or "local"
    entity = Dataset(dataset.name[:500], digest, kind, source, profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training"), InputTag("task", dataset.task)])


def set_state(client: "MlflowClient", run: str, line: Started | Ended) -> None:
    match line:
        case Started():
            client.set_tag(run, STATUS, "running")
            client.update_run(run, "RUNNING")
        case Ended():
            client.set_tag(run, ERROR, line.error.code if line.error else "")
            close(client, run, line.status, line.time)


def close(client: "MlflowClient", run: str, status: Status, time: int) -> None:
    """End the run at `time` in ms."""
    client.set_tag(run, STATUS, status)
    client.set_terminated(run, MLFLOW_STATUS[status], time)
