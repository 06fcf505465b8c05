"""The spec of a run as it is recorded: without the passwords of databases; and without some of its fields."""

from collections.abc import Iterable, Mapping
from typing import Any

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


def without(spec: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """A spec as JSON without some fields, each named by its path."""
    paths = [field.split(".") for field in fields]
    gone = {path[0] for path in paths if len(path) == 1}
    return {
        name: without(value, [".".join(path[1:]) for path in paths if path[0] == name and len(path) > 1])
        if isinstance(value, dict)
        else value
        for name, value in spec.items()
        if name not in gone
    }
