"""A stage as a Prefect task: cached by content across flow runs and processes, retried when that can help."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Task, task
from prefect.cache_policies import CacheKeyFnPolicy
from pydantic import BaseModel

from backprop_core.stages import Stage
from tasks.stages.cache_policy import Records, is_retryable, key_of

R = TypeVar("R", bound=BaseModel)


def stage_task(stage: Stage[R], carry_out: Callable[[dict[str, Any]], R], **options: Any) -> Task[..., R]:
    """The task of a stage: its name and parameters from the declaration, its body from the run."""

    @functools.wraps(stage.function)
    def body(**parameters: Any) -> R:
        return carry_out(parameters)

    body.__signature__ = stage.signature  # type: ignore[attr-defined]  # Prefect reads the parameters there
    return task(
        name=stage.name,
        cache_policy=CacheKeyFnPolicy(cache_key_fn=key_of).configure(key_storage=Records()),
        result_serializer="json",
        persist_result=True,
        cache_result_in_memory=False,
        retries=2,
        retry_delay_seconds=[1, 10],
        retry_condition_fn=is_retryable,
        **options,
    )(body)
