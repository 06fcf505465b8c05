"""Runs a stage of a shared store: its inputs come from the bucket, its result goes there, a training has a lease."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel

from backprop_core.schema.refs import artifacts_in
from backprop_core.stages import Stage
from backprop_core.store import shared_checkpoints
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import held
from backprop_core.store.sharing import Shared
from tasks.stages.cache_policy import UnfitRecord, read_result, verify

R = TypeVar("R", bound=BaseModel)


def carried_out(
    stage: Stage[R],
    key: str,
    parameters: Mapping[str, Any],
    store: Store,
    work: Callable[[], R],
    *,
    again: bool,
    beat: Callable[[], None],
) -> R:
    """The result of `work`, which runs the stage in a process that knows no bucket.

    A training that another machine does is waited for, with a call of `beat` every second; its result is taken unless
    the stage is to run `again`.
    """
    if store.shared is None:
        return work()
    for ref in artifacts_in(parameters):
        store.local(ref)
    with alone(stage, key, store, store.shared, beat):
        known = None if again else returned(stage, key, store)
        result = known or work()
    for ref in artifacts_in(result):
        store.share(ref.digest)
    store.shared.sync()  # the log of the run, too
    return result


@contextmanager
def alone(stage: Stage[R], key: str, store: Store, shared: Shared, beat: Callable[[], None]) -> Iterator[None]:
    """Of all machines, let one do a training at a time, from the newest checkpoint of any."""
    if stage.name != "train":
        yield
        return
    with (
        held(store.lock(f"training-{key}"), "another machine does the same training", beat=beat),
        shared_checkpoints.kept(shared, key),
    ):
        yield


def returned(stage: Stage[R], key: str, store: Store) -> R | None:
    """What another machine has made of the stage meanwhile."""
    if stage.name != "train" or not store.has_result(key):
        return None
    try:
        result = read_result(store.layout.cache_result(key).read_bytes(), {stage.result.__name__: stage.result})
        verify(store, result)
    except (UnfitRecord, FileNotFoundError):
        return None
    assert isinstance(result, stage.result)
    return result


def forget_checkpoints(key: str, store: Store) -> None:
    """Delete the checkpoints of a training from the bucket, once no other machine does the same training."""
    if store.shared:
        with held(store.lock(f"training-{key}"), "another machine does the same training"):
            shared_checkpoints.drop(store.shared, key)


def end(stage: Stage[R], key: str, store: Store) -> None:
    """Delete the checkpoints of a training from the bucket, now that its result is noted there."""
    if store.shared and stage.name == "train":
        shared_checkpoints.drop(store.shared, key)
