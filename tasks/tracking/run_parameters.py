"""The parameters of a run in MLflow: what tells it from other runs. The complete spec is its artifact `spec.json`."""

from collections.abc import Iterable
from typing import Any

from backprop_core.schema.refs import DatasetSummary
from backprop_core.schema.specs import DatasetSpec, RunSpec
from tasks.tracking.journal import parameters

COMPARED = (  # shown also where they have their defaults: what runs are compared by
    "model.name",
    "training.steps",
    "training.epochs",
    "training.learning_rate",
    "training.batch_size",
    "training.max_length",
    "training.seed",
    "training.lora.rank",
    "training.lora.alpha",
    "merge.strategy",
    "evaluation.metric",
    "gate.max_drop",
)
LINE = "line"  # the experiment has its name


def run_parameters(spec: RunSpec, chosen: Iterable[str]) -> dict[str, str]:
    """The fields of a spec that differ from their defaults, that were `chosen` automatically, or that compare runs."""
    given, usual, wanted = leaves(spec), defaults(len(spec.datasets)), {*COMPARED, *chosen}
    told = {name: value for name, value in given.items() if value != usual.get(name) or name in wanted}
    return {name: value for name, value in told.items() if name != LINE and value != str(None)}


def dataset_parameters(dataset: DatasetSummary, of_run: dict[str, str]) -> dict[str, str]:
    """The parameters of one LoRA run: how the run trains, and the dataset that this one trains on."""
    fields: dict[str, Any] = dataset.model_dump(include={"name", "task", "digest", "train_rows", "heldout_rows"})
    trains = {name: value for name, value in of_run.items() if name.startswith("training.")}
    return trains | {f"dataset.{name}": str(value) for name, value in fields.items()}


def leaves(spec: RunSpec) -> dict[str, str]:
    return parameters(spec.model_dump(mode="json"))


def defaults(datasets: int) -> dict[str, str]:
    """What a spec of so many datasets has where nothing is set."""
    return leaves(RunSpec(datasets=[DatasetSpec(path="?") for _ in range(datasets)]))
