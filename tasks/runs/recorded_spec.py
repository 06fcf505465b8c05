"""The spec of a run as it is recorded: without the passwords of databases."""

from backprop_core.data.sql_query import without_password
from backprop_core.schema.specs import DatasetSpec, RunSpec


def without_passwords(spec: RunSpec) -> RunSpec:
    """The same spec, but for the passwords in URLs of queries. A resumed run needs none, as it has kept the rows."""
    watch = [blank(dataset) for dataset in spec.evaluation.watch]
    evaluation = spec.evaluation.model_copy(update={"watch": watch})
    datasets = [blank(dataset) for dataset in spec.datasets]
    return spec.model_copy(update={"datasets": datasets, "evaluation": evaluation})


def blank(dataset: DatasetSpec) -> DatasetSpec:
    places = {"path": dataset.path, "heldout": dataset.heldout}
    return dataset.model_copy(update={name: place and without_password(place) for name, place in places.items()})
