"""What a stage's result depends on, as one digest: its inputs, its spec and its version. Nothing else."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Record, Spec
from backprop_core.schema.refs import ArtifactRef, BaseRef, ConverterRef, DatasetRef, OwnTasks, SourceRef
from backprop_core.stages import every

ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, UTF-8, no NaN."""
    return ENCODER.encode(value)


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digests_in(text: str) -> set[str]:
    """Everything in a text that looks like a digest."""
    return set(re.findall(r"\b[0-9a-f]{64}\b", text))


def dataset_digest(dataset: DatasetRef) -> str:
    """A dataset is its two sets of rows; its name and task are labels."""
    return digest_of([dataset.train.digest, dataset.heldout.digest])


def part(value: Any) -> Any:
    """What one parameter contributes to a key: refs their digest, specs what can change a result."""
    match value:
        case BaseRef():
            marks = [*filter(None, [value.day]), *(["no bos"] if value.bare else [])]
            return [value.digest, *marks] if marks else value.digest
        case SourceRef(readings=readings, forgotten=forgotten, restored=restored) if readings or forgotten or restored:
            decided = [*([forgotten] if forgotten else []), *([{"restored": restored}] if restored else [])]
            return [value.digest, part(readings), *decided]
        case ArtifactRef() | ConverterRef() | OwnTasks() | SourceRef():
            return value.digest
        case Spec():
            return part(value.semantic())
        case Record():
            return {name: part(item) for name, item in set_fields(value).items()}
        case Mapping():
            return {name: part(item) for name, item in value.items()}
        case list() | tuple():
            return [part(item) for item in value]
        case _:
            return value


def set_fields(record: Record) -> dict[str, Any]:
    """A record's fields, but for those that change no result, and those that came later and are at their defaults."""
    every = {name: (getattr(record, name), field) for name, field in type(record).model_fields.items()}
    return {
        name: value
        for name, (value, field) in every.items()
        if field.json_schema_extra != NO_KEY and (field.json_schema_extra != KEY_IF_SET or value != field.default)
    }


def stage_parts(stage: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The named parts that `stage_key` hashes; what `--explain` compares."""
    declared = every()[stage]
    given = {name: one for name, one in parameters.items() if (name, one) not in declared.defaults.items()}
    return {"stage": stage, "version": declared.version, "parameters": part(given)}


def stage_key(stage: str, parameters: Mapping[str, Any]) -> str:
    """The cache key of a stage, 64 hex digits."""
    return digest_of(stage_parts(stage, parameters))
