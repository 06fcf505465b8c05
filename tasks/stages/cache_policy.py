"""The cache that Prefect's records of finished stages go through, and when a failed task is tried again."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.context import TaskRunContext
from prefect.filesystems import WritableFileSystem
from pydantic import BaseModel

from backprop_core.errors import ArtifactDamaged, ArtifactMissing, BackpropError, FormatNewer
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import artifacts_in
from backprop_core.stages import every
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import stage_key

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)
FORMAT = 1  # of a record


@cache
def result_types() -> Mapping[str, type[BaseModel]]:
    """What stages return, by the name of the class."""
    return {stage.result.__name__: stage.result for stage in every().values()}


class UnfitRecord(Exception):
    """A cache record that is not one of ours, or whose artifact is not whole: a miss."""


class Records(WritableFileSystem):
    """Prefect's records of finished stages, in the store: `keys/` here, what they point to in `results/` beside it.

    A record counts only if it is plain JSON of one of our ref types and the artifacts it names verify; anything else
    is a miss, said aloud. Left to itself, Prefect lets the stored record choose the deserializer, pickle included.
    """

    _block_type_name = "backprop-records"

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]  # Prefect calls it from sync code
        store = Store(settings().store_path)
        store.has_result(path)
        content = store.layout.cache_key(path).read_bytes()
        result = store.layout.cache_result(path)
        try:
            metadata = read_metadata(content)
            verify(store, read_result(result.read_bytes()))
        except (UnfitRecord, FileNotFoundError) as error:
            log.warning("the cache record %s is ignored and the stage runs again: %s", path[:12], error)
            raise
        serializer = SERIALIZER | {"object_decoder": f"{__name__}.{decode.__name__}"}
        return json.dumps(metadata | {"storage_key": str(result), "serializer": serializer}).encode()

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]
        store = Store(settings().store_path)
        write_atomic(store.layout.cache_key(path), json.dumps({"format": FORMAT, **json.loads(content)}))
        store.keep_result(path)

    async def aread_path(self, path: str, **_: Any) -> bytes:
        return self.read_path(path)

    async def awrite_path(self, path: str, content: bytes, **_: Any) -> None:
        self.write_path(path, content)


def is_recorded(store: Store, key: str) -> bool:
    """Whether there is a record under this key, good or not. Raises FormatNewer."""
    if not store.has_result(key):
        return False
    with suppress(FileNotFoundError, UnfitRecord):
        read_metadata(store.layout.cache_key(key).read_bytes())
    return True


def read_metadata(content: bytes) -> dict[str, Any]:
    """A record's metadata, of format 1 if it has no number.

    Raises UnfitRecord unless it asks for plain JSON, FormatNewer.
    """
    try:
        metadata: dict[str, Any] = json.loads(content)
        serializer, found = dict(metadata["serializer"]), int(metadata.pop("format", FORMAT))
    except (ValueError, KeyError, TypeError) as error:
        raise UnfitRecord(f"it is no record of ours ({type(error).__name__})") from error
    if found > FORMAT:
        raise FormatNewer(
            f"a cache record has format {found}, and this version reads formats up to {FORMAT}",
            hint="install the version that wrote it, or set another BACKPROPAGATE_STORE",
        )
    if any(serializer.get(name) != value for name, value in SERIALIZER.items()):
        raise UnfitRecord(f"it asks for the deserializer {serializer.get('type')}")
    return metadata


def read_result(content: bytes, types: Mapping[str, type[BaseModel]] | None = None) -> BaseModel:
    """The ref that a stage returned; raises UnfitRecord unless it is one of these types."""
    try:
        return known(json.loads(content), types or result_types())
    except (ValueError, KeyError, TypeError) as error:
        raise UnfitRecord(f"it is no record of ours ({type(error).__name__})") from error


def known(value: dict[str, Any], types: Mapping[str, type[BaseModel]]) -> BaseModel:
    """A ref by the name of its class alone: Prefect notes the module too, and ours may have moved since."""
    return types[value["__class__"].rpartition(".")[2]].model_validate(value["data"])


def decode(value: dict[str, Any]) -> Any:
    """What Prefect reads a result with: it asks for each JSON object in it, from the inside out."""
    return known(value, result_types()) if "__class__" in value else value


SERIALIZER = {
    "type": "json",
    "jsonlib": "json",
    "object_encoder": "prefect.serializers.prefect_json_object_encoder",
    "object_decoder": "prefect.serializers.prefect_json_object_decoder",
}


def verify(store: Store, record: BaseModel) -> None:
    """Raise UnfitRecord unless every artifact of the record is whole; a damaged one is set aside."""
    for ref in artifacts_in(record):
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


def outside(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a task that asks another service: called `name`, never cached, retried when that can help."""
    return task(
        task_run_name=name,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[1, 10],
        retry_condition_fn=is_retryable,
    )
