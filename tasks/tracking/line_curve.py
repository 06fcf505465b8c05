"""The curve of a line: one MLflow run whose metrics have the version as step. Made from the versions of the store.

Step 0 is the base. A version is sent once: it never changes, and a tag of the run has the highest number that was sent.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import Evaluation, RunResult
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import StoreLayout
from tasks.tracking.connection import LINE, experiment_of
from tasks.tracking.journal import NOTE
from tasks.tracking.record import ROLE, named, slices

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

OF_LINE = "line"  # role of the run, which is neither a parent nor a child
HIGHEST = "backprop.versions"  # tag: the highest version that was sent
POSITIVE = {"loss": "minus_loss"}  # metrics whose score is the negative
BATCH = 800  # metrics


class Curve(NamedTuple):
    """Where MLflow has the curve of a line."""

    experiment: str
    run: str

    @property
    def link(self) -> str:
        """Its page, from another page of MLflow."""
        return f"{self.run_link(self.run)}/model-metrics"

    def run_link(self, run: str) -> str:
        """The page of a run of the line."""
        return f"#/experiments/{self.experiment}/runs/{run}"


class Point(NamedTuple):
    """A value of the curve."""

    name: str
    value: float
    time: int  # ms since 1970
    step: int


def draw(client: "MlflowClient", settings: Settings, line: str) -> Curve:
    """Add the versions that the line's curve lacks."""
    from mlflow.entities import Metric

    store = Store(settings.store_path)
    lines, experiment = Lines(store), experiment_of(client, settings, line)
    versions = {number: lines.version(line, number) for number in lines.versions(line)}
    times = {number: store.layout.line(line).version(number).stat().st_mtime_ns // 1_000_000 for number in versions}
    run = found(client, experiment, line) or begun(client, experiment, line, min(times.values()))
    highest = int(run.data.tags.get(HIGHEST, "0"))
    if max(versions) > highest:
        new = [Metric(*one) for one in points(versions, times, store.layout, after=highest)]
        for batch in slices(new, BATCH):
            client.log_batch(run.info.run_id, batch)
        client.set_tag(run.info.run_id, HIGHEST, str(max(versions)))
        client.set_terminated(run.info.run_id, "FINISHED", max(times.values()))
    return Curve(experiment, run.info.run_id)


def found(client: "MlflowClient", experiment: str, line: str) -> "Run | None":
    """The run of the curve, if it exists."""
    wanted = f"tags.`{ROLE}` = '{OF_LINE}' AND tags.`{LINE}` = '{line}'"
    return next(iter(client.search_runs([experiment], wanted, max_results=1)), None)


def begun(client: "MlflowClient", experiment: str, line: str, time: int) -> "Run":
    """A new run for the curve."""
    return client.create_run(experiment, time, {ROLE: OF_LINE, LINE: line}, title(line))


def title(line: str) -> str:
    """The name of the run of a curve."""
    return f"{line}: scores by version"


def points(
    versions: dict[int, LineVersion], times: dict[int, int], layout: StoreLayout, *, after: int
) -> Iterator[Point]:
    """The scores of the versions after a number; at step 0 those of the base, by the first version that has a task."""
    known = set[str]()
    for number, version in versions.items():
        if number > after:
            made, new = evaluation_of(layout, version.run_id), [task for task in version.scores if task not in known]
            for step, values in (0, base_values(version, new, made)), (number, values_of(version, made)):
                for name, value in named(values).items():
                    yield Point(name, value, times[number], step)
        known.update(version.scores)


def values_of(version: LineVersion, made: Evaluation | None) -> dict[str, float]:
    """Score by task, average, and what the run that made the version has measured of forgetting."""
    scores = {task: cell.score(metric_of(version)) for task, cell in version.cells.items()}
    values = {score_name(version, task): score for task, score in scores.items() if score is not None}
    trained = [score for task, score in scores.items() if score is not None and task not in version.watch]
    if trained:
        values["average"] = sum(trained) / len(trained)
    if made:
        lost = zip(made.tasks, made.forgetting, strict=True)
        values |= {f"forgetting.{task}": value for task, value in lost if value is not None}
        values |= {} if made.backward_transfer is None else {"backward_transfer": made.backward_transfer}
    return values


def base_values(version: LineVersion, tasks: Sequence[str], made: Evaluation | None) -> dict[str, float]:
    """The base's score of each of these tasks."""
    if made is None or made.metric != metric_of(version):
        return {}
    known = dict(zip(made.tasks, made.base_scores or made.base, strict=True))
    return {score_name(version, task): known[task] for task in tasks if task in known}


def score_name(version: LineVersion, task: str) -> str:
    metric = metric_of(version)
    return f"{POSITIVE.get(metric, metric)}.{task}"


def metric_of(version: LineVersion) -> str:
    """The metric of its gate."""
    return version.gate.metric if version.gate else "token_accuracy"


def evaluation_of(layout: StoreLayout, run_id: str) -> Evaluation | None:
    """What a run has measured; None if its result is gone or cannot be read."""
    try:
        return RunResult.model_validate(json.loads(layout.run(run_id).result.read_bytes())).evaluation
    except (OSError, ValueError, ValidationError):
        return None


def retire(client: "MlflowClient", settings: Settings, line: str, name: str, text: str) -> None:
    """Keep the curve of a deleted line under another name, so that a new line may have its own; `text` describes it."""
    known = client.get_experiment_by_name(f"{settings.namespace}.{line}")
    if known and (run := found(client, known.experiment_id, line)):
        client.set_experiment_tag(known.experiment_id, NOTE, text)
        client.set_tag(run.info.run_id, NOTE, text)
        client.update_run(run.info.run_id, name=title(name))
        client.set_tag(run.info.run_id, LINE, name)  # last: it is not found any more


def remove(client: "MlflowClient", settings: Settings, line: str) -> None:
    """Remove the curve of a line that is no more."""
    known = client.get_experiment_by_name(f"{settings.namespace}.{line}")
    if known and (run := found(client, known.experiment_id, line)):
        client.delete_run(run.info.run_id)


def renamed(client: "MlflowClient", experiment: str, line: str) -> None:
    """Give the curve of a line its new name; its tag has it already."""
    if run := found(client, experiment, line):
        client.update_run(run.info.run_id, name=title(line))
