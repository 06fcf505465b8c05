"""Cache keys, cache storage and retries of every stage."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext
from prefect.filesystems import WritableFileSystem
from pydantic import BaseModel

from backprop_core.errors import ArtifactDamaged, ArtifactMissing, BackpropError
from backprop_core.keys import stage_key
from backprop_core.refs import AdapterRef, ArtifactRef, DatasetRef, Fidelity, GGUFRef, RowsRef, Scores, TrainResult
from backprop_core.settings import settings
from backprop_core.store import Store, write_atomic

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)

RESULTS: dict[str, type[BaseModel]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (AdapterRef, DatasetRef, Fidelity, GGUFRef, RowsRef, Scores, TrainResult)
}


class UnfitRecord(Exception):
    """A cache record that is not one of ours, or whose artifact is not whole: a miss."""


class Records(WritableFileSystem):
    """Prefect's records of finished stages, in the store.

    Reads only JSON records of our ref types, and only while the artifacts they name verify; anything else is a miss.
    The stored metadata would otherwise choose the deserializer, pickle included.
    """

    _block_type_name = "backprop-records"

    def _resolve_path(self, path: str) -> Path:
        return Store(settings().store_path).cache / Path(path).name

    def read_path(self, path: str, **_: Any) -> bytes:
        content = self._resolve_path(path).read_bytes()
        try:
            verify(Store(settings().store_path), read_record(content))
        except UnfitRecord as error:
            log.warning("cache record %s is left aside, the stage runs again: %s", Path(path).name[:12], error)
            raise
        return content

    def write_path(self, path: str, content: bytes, **_: Any) -> None:
        write_atomic(self._resolve_path(path), content.decode())

    async def aread_path(self, path: str, **_: Any) -> bytes:
        return self.read_path(path)

    async def awrite_path(self, path: str, content: bytes, **_: Any) -> None:
        self.write_path(path, content)


def read_record(content: bytes) -> BaseModel:
    """The ref in a Prefect result record; raises UnfitRecord unless it is plain JSON of one of our types."""
    try:
        record = json.loads(content)
        serializer, result = record["metadata"]["serializer"], json.loads(record["result"])
        expected = {"type": "json", "jsonlib": "json", "object_encoder": ENCODER, "object_decoder": DECODER}
        if any(serializer.get(name) != value for name, value in expected.items()):
            raise UnfitRecord(f"it asks for the deserializer {serializer.get('type')}")
        return RESULTS[result["__class__"]].model_validate(result["data"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnfitRecord(f"it is no record of ours ({type(error).__name__})") from error


ENCODER = "prefect.serializers.prefect_json_object_encoder"
DECODER = "prefect.serializers.prefect_json_object_decoder"


def artifacts(record: BaseModel) -> Iterator[ArtifactRef]:
    """Every artifact that a record names."""
    if isinstance(record, ArtifactRef):
        yield record
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, BaseModel):
            yield from artifacts(value)


def verify(store: Store, record: BaseModel) -> None:
    """Raise UnfitRecord unless every artifact of the record is whole; a damaged one is set aside."""
    for ref in artifacts(record):
        try:
            store.verify(ref.digest)
        except ArtifactMissing as error:
            raise UnfitRecord(error.message) from error
        except ArtifactDamaged as error:
            store.set_aside(ref.digest)
            raise UnfitRecord(error.message) from error


def key_of(context: TaskRunContext, parameters: Mapping[str, Any]) -> str:
    """The stage's cache key for Prefect."""
    return stage_key(context.task.name, parameters)


def is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    """Whether the failure can pass by itself, as its code says."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BackpropError) and error.retryable


def stage(function: Callable[P, R]) -> Task[P, R]:
    """Make a function a stage: cached by content across flow runs and processes, retried when that can help."""
    return task(
        function,
        name=function.__name__,
        cache_policy=CacheKeyFnPolicy(cache_key_fn=key_of),
        result_storage=Records(),
        result_serializer="json",
        persist_result=True,
        cache_result_in_memory=False,
        retries=2,
        retry_delay_seconds=[1, 10],
        retry_condition_fn=is_retryable,
    )
