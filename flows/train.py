"""One LoRA run on one dataset."""

from typing import Annotated

from pydantic import Field

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, ExportSpec, ModelSpec, RunSpec, TrainSpec
from flows.declared import declared
from flows.multi_run import carry_out
from flows.pipeline import pipeline
from flows.run_names import tasks_of


@declared("train", title=lambda given: f"train {tasks_of([given['data']])}", body=pipeline)
def train(
    data: str | DatasetSpec,
    model: str | ModelSpec = ModelSpec(),
    steps: int | None = None,
    line: LineName = "default",
    training: TrainSpec = TrainSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    export: ExportSpec = ExportSpec(),
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Train one LoRA adapter on one dataset, score it on held-out rows, and export it if export says so.

    Args:
        data: File or URL of rows, or a dataset with all its fields.
        model: Hub id or local directory of the base model, or all its fields.
        steps: Optimizer steps; default: training.steps, or else training.epochs.
        line: Name to record the run under.
        training: How the LoRA run trains.
        evaluation: What to measure on the held-out rows.
        export: Which GGUF files to write.
        max_seconds: Time limit: the run then stops, in training after a checkpoint, and can be resumed.
        run_id: The interrupted run to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    spec = RunSpec(
        line=line,
        model=ModelSpec(name=model) if isinstance(model, str) else model,
        datasets=[DatasetSpec(path=data) if isinstance(data, str) else data],
        training=training.model_copy(update={"steps": steps}) if steps else training,
        evaluation=evaluation,
        export=export,
        max_seconds=max_seconds,
    )
    return carry_out("train", spec, run_id=run_id, fresh=fresh)
