"""Runs lm-evaluation-harness tasks on a base with an adapter. Imports the package late."""

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from backprop_core.errors import ConfigInvalid, GPUOutOfMemory, HarnessFailed
from backprop_core.evaluation import lm_eval_tasks
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.runtime.settings import USER_OFFLINE
from backprop_core.schema.refs import AdapterRef, Harnessed, OwnTasks
from backprop_core.schema.specs import HarnessSpec
from backprop_core.store.artifacts import Store

BATCH = 8  # requests at a time
BROKEN = (OSError, ValueError, RuntimeError, ArithmeticError, ImportError)  # errors of a task's data or metrics
YES = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables


def harness(
    base: LoadedBase, adapter: AdapterRef | None, *, spec: HarnessSpec, own: OwnTasks | None, store: Store
) -> Harnessed:
    """All metrics of the configured tasks and groups, without their standard errors.

    Raises ConfigInvalid for tasks that are unknown or have changed since the run started; HarnessFailed;
    GPUOutOfMemory.
    """
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    if own and lm_eval_tasks.find(Path(own.path)) != own:
        raise ConfigInvalid(f"{own.path} has changed since the run started", hint="start a new run")
    tasks = known(spec, own)
    try:
        with adapted(base, adapter, store) as model, base.checking_ids(), online():
            made = simple_evaluate(
                HFLM(pretrained=model, tokenizer=copy.deepcopy(base.tokenizer), batch_size=BATCH),
                tasks=list(spec.tasks),
                num_fewshot=spec.shots,
                limit=spec.limit,
                task_manager=tasks,
                bootstrap_iters=0,
                log_samples=False,
            )
    except torch.OutOfMemoryError as error:
        raise GPUOutOfMemory(
            f"evaluation.harness: {BATCH} requests at a time do not fit", hint="remove evaluation.harness"
        ) from error
    except (*BROKEN, httpx.TransportError) as error:
        raise HarnessFailed(
            f"evaluation.harness: {type(error).__name__}: {str(error)[:300]}",
            hint="check the task, and the network if its data come from the Hub",
        ) from error
    return Harnessed(scores={task: figures(found) for task, found in sorted(made["results"].items())})


@contextmanager
def online() -> Iterator[None]:
    """Allow Hub downloads, unless the user has set HF_HUB_OFFLINE: only harness tasks download data in a worker."""
    import datasets  # type: ignore[import-untyped]

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = os.environ.get(USER_OFFLINE, "").upper() in YES
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def known(spec: HarnessSpec, own: OwnTasks | None) -> Any:
    """The package's task index; indexes its thousands of built-in tasks only if a task is not a custom one."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    unknown = set(spec.tasks)
    for its_own in (False, True):
        tasks = TaskManager(include_path=own.path if own else None, include_defaults=its_own)
        unknown -= set(tasks.all_tasks)
        if not unknown:
            return tasks
    raise ConfigInvalid(
        f"evaluation.harness: unknown task {min(unknown)}",
        hint="`lm-eval ls tasks` lists them; set BACKPROPAGATE_HARNESS_TASKS for custom ones",
    )


def figures(found: dict[str, object]) -> dict[str, float]:
    """`{"acc,none": 0.5, "acc_stderr,none": "N/A", …}` → `{"acc": 0.5}`; a filter other than none stays in the name.

    Values that are not finite numbers are left out.
    """
    return {
        name.removesuffix(",none"): float(value)
        for name, value in sorted(found.items())
        if "," in name and "_stderr," not in name and isinstance(value, int | float) and math.isfinite(value)
    }
