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
    """Train one LoRA adapter on one dataset, score it on held-out rows, and export it if asked.

    Args:
        data: A file or an address of rows, or a dataset with all its fields.
        model: Hub id or local directory of the base model, or all its fields.
        steps: Optimizer steps; training.steps, or training.epochs, if not given.
        line: Name under which the run is recorded.
        training: How the LoRA run trains.
        evaluation: What is measured on the held-out rows.
        export: Which GGUF files are made.
        max_seconds: Time for the run: then it stops, in training at a step with a checkpoint, and can be resumed.
        run_id: Of an interrupted run that shall go on; everything else is then taken from its record.
        fresh: Do every stage again, whatever the cache has.
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
