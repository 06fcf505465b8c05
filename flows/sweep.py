"""Tries values of training fields on a part of the data, and says which to take."""

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from backprop_core.data import stages as data
from backprop_core.errors import BackpropError, ConfigInvalid, GPUOutOfMemory, LossNotFinite, NoLabelTokens, NoRows
from backprop_core.evaluation import stages as evaluation
from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import Cell, DatasetRef, RunResult
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, ModelSpec, RunSpec, TrainSpec
from flows.declared import declared
from flows.run_names import tasks_of
from flows.steps.rows import curated
from flows.steps.scores import score
from flows.steps.training import trained
from tasks.runs.allowed_paths import admitted
from tasks.runs.flow_run import Run, recorded
from tasks.runs.sweep import prepare
from tasks.runs.sweep_notes import CONFIDENCE
from tasks.runs.two_bases import trained_by

SHARE, MOST, FEWEST = 5, 200, 5  # one training row in five scores, at most 200
OF_A_SETTING = (LossNotFinite, GPUOutOfMemory, NoLabelTokens)  # what a setting can be to blame for


def tried(run: Run) -> None:
    """Train and score every combination, and compare them on the same rows.

    Raises the error of the first combination if none could be trained.
    """
    [dataset] = curated(run).datasets
    part = divided(run, dataset)
    run.ahead([partial(attempt, index=index, dataset=part) for index in range(len(run.prepared.cells))])
    made = [attempt(run, index, part) for index in range(len(run.prepared.cells))]
    rows = [cell.rows for cell in made if isinstance(cell, Cell)]
    metric = run.spec.evaluation.metric
    compared = run.call(evaluation.contrast, scores=rows, metric=metric, confidence=CONFIDENCE) if rows else None
    run.notes.swept(compared, part.heldout.rows)
    for error in made:
        if compared is None and isinstance(error, BackpropError):
            raise error


def divided(run: Run, dataset: DatasetRef) -> DatasetRef:
    """The training rows, some of which score here; those that are held out score versions and choose nothing."""
    rows = dataset.train
    if dataset.judges:
        raise ConfigInvalid(
            f"{dataset.name} has preferences, which a sweep does not score", hint="try settings on its other rows"
        )
    count = min(rows.rows // SHARE, MOST)
    if count < FEWEST:
        raise NoRows(f"{rows.rows} training rows are too few to choose settings by", hint="give more rows")
    scoring = run.call(data.first, rows=rows, most=count, whole_groups=True)
    training = run.call(data.unseen, rows=rows, learned=[scoring])
    if min(scoring.rows, training.rows) < FEWEST:
        raise NoRows(
            f"{scoring.rows} rows to score and {training.rows} to train are too few to choose settings by: "
            "rows of a group stay together",
            hint="give rows of more groups",
        )
    return dataset.model_copy(update={"train": training, "heldout": scoring})


def attempt(run: Run, index: int, dataset: DatasetRef) -> Cell | BackpropError:
    """Train and score one combination; the error if its settings do not work."""
    training, usual = run.prepared.cells[index].training, run.spec.training
    own = trained_by(run, training)
    alike = trained_by(run, training.model_copy(update={"max_length": usual.max_length, "too_long": usual.too_long}))
    try:
        with run.notes.sweep_cell(index, dataset):
            made = trained(own, dataset, [], None, {}, None)
            cell = score(alike, made.adapter, dataset.heldout)
            run.notes.sweep_cell_done(index, made, cell)
    except OF_A_SETTING as error:
        run.notes.sweep_cell_failed(index, error)
        return error
    return cell


@declared("sweep", title=lambda given: f"sweep {tasks_of([given['data']])}", body=tried)
def sweep(
    data: str | DatasetSpec,
    settings: dict[str, list[Any]] | None = None,
    model: str | ModelSpec = ModelSpec(),
    line: LineName = "default",
    training: TrainSpec = TrainSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Train one LoRA adapter for each combination of settings, and say which to take, and whether it may be noise.

    A fifth of the training rows scores, so the held-out rows that score versions choose nothing. A combination that
    cannot be trained is a row with its error code; the others continue.

    Args:
        data: File or URL of rows, or a dataset with all its fields.
        settings: Values to try by field, like {"training.learning_rate": [1e-4, 5e-4]}; all combinations are tried.
        model: Hub id or local directory of the base model, or all its fields.
        line: Name to record the run under.
        training: How each LoRA run trains, apart from the settings.
        evaluation: What to measure; the metric decides.
        max_seconds: Time limit: the run then stops, in training after a checkpoint, and can be resumed.
        run_id: The interrupted run to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    if not (settings or run_id):
        raise ConfigInvalid("no settings to try", hint='give them as {"training.learning_rate": [1e-4, 5e-4]}')
    spec = RunSpec(
        line=line,
        model=ModelSpec(name=model) if isinstance(model, str) else model,
        datasets=[DatasetSpec(path=data) if isinstance(data, str) else data],
        training=training,
        evaluation=evaluation,
        max_seconds=max_seconds,
    )
    start = partial(prepare, admitted(spec) if not run_id else spec, settings or {})
    with recorded(start, run_id=run_id, fresh=fresh) as (run, outcome):
        tried(run)
    return outcome.result
