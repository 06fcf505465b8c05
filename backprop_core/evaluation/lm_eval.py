"""Tasks of lm-evaluation-harness, on a base with an adapter. The package is imported late."""

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
BROKEN = (OSError, ValueError, RuntimeError, ArithmeticError, ImportError)  # a task's data, or its metrics
YES = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables


def harness(
    base: LoadedBase, adapter: AdapterRef | None, *, spec: HarnessSpec, own: OwnTasks | None, store: Store
) -> Harnessed:
    """Every metric of the named tasks and groups, by the package's own rules; its standard errors are left out.

    Raises ConfigInvalid for tasks that are not known, or have changed since the run began; HarnessFailed where it
    cannot be done; GPUOutOfMemory.
    """
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    if own and lm_eval_tasks.find(Path(own.path)) != own:
        raise ConfigInvalid(f"{own.path} is not as it was when the run began", hint="start another run")
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
            f"evaluation.harness: {BATCH} requests at a time do not fit", hint="leave evaluation.harness out"
        ) from error
    except (*BROKEN, httpx.TransportError) as error:
        raise HarnessFailed(
            f"evaluation.harness: {type(error).__name__}: {str(error)[:300]}",
            hint="where its data come from the Hub, look at the network; else at the task",
        ) from error
    return Harnessed(scores={task: figures(found) for task, found in sorted(made["results"].items())})


@contextmanager
def online() -> Iterator[None]:
    """The Hub, if the user's own environment allows it: tasks fetch their data; nothing else in a worker does."""
    import datasets  # type: ignore[import-untyped]

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = os.environ.get(USER_OFFLINE, "").upper() in YES
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def known(spec: HarnessSpec, own: OwnTasks | None) -> Any:
    """The package's index of tasks; its own thousands are read only for one that is not the user's."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    unknown = set(spec.tasks)
    for its_own in (False, True):
        tasks = TaskManager(include_path=own.path if own else None, include_defaults=its_own)
        unknown -= set(tasks.all_tasks)
        if not unknown:
            return tasks
    raise ConfigInvalid(
        f"evaluation.harness: no task {min(unknown)}",
        hint="`lm-eval ls tasks` lists them; your own are found by BACKPROPAGATE_HARNESS_TASKS",
    )


def figures(found: dict[str, object]) -> dict[str, float]:
    """`{"acc,none": 0.5, "acc_stderr,none": "N/A", …}` → `{"acc": 0.5}`; a filter other than none stays in the name.

    What is no number, as a correlation with answers that are all the same, is left out.
    """
    return {
        name.removesuffix(",none"): float(value)
        for name, value in sorted(found.items())
        if "," in name and "_stderr," not in name and isinstance(value, int | float) and math.isfinite(value)
    }
