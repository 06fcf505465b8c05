"""Tasks of lm-evaluation-harness, on a base with an adapter. The package is imported late."""

import copy
from pathlib import Path
from typing import Any

from backprop_core import own_tasks
from backprop_core.errors import ConfigInvalid, HarnessFailed
from backprop_core.model import LoadedBase, adapted
from backprop_core.refs import AdapterRef, Harnessed, OwnTasks
from backprop_core.specs import HarnessSpec
from backprop_core.store import Store

BATCH = 8  # requests at a time


def harness(
    base: LoadedBase, adapter: AdapterRef | None, *, spec: HarnessSpec, own: OwnTasks | None, store: Store
) -> Harnessed:
    """Every metric of the named tasks and groups, by the package's own rules; its standard errors are left out.

    Raises ConfigInvalid for a task that is not known, HarnessFailed where its data cannot be had.
    """
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    if own and own_tasks.find(Path(own.path)) != own:
        raise HarnessFailed(f"{own.path} is not as it was when the run began", hint="start another run")
    tasks = known(spec, own)
    try:
        with adapted(base, adapter, store) as model:
            made = simple_evaluate(
                HFLM(pretrained=model, tokenizer=copy.deepcopy(base.tokenizer), batch_size=BATCH),
                tasks=list(spec.tasks),
                num_fewshot=spec.shots,
                limit=spec.limit,
                task_manager=tasks,
                bootstrap_iters=0,
                log_samples=False,
            )
    except (OSError, ValueError, RuntimeError) as error:  # of datasets, of the Hub, of the task's own metric
        raise HarnessFailed(
            f"evaluation.harness: {type(error).__name__}: {str(error)[:300]}",
            hint="its data come from the Hub: run it again where that is reached, or without evaluation.harness",
        ) from error
    return Harnessed(scores={task: figures(found) for task, found in sorted(made["results"].items())})


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
    """`{"acc,none": 0.5, "acc_stderr,none": "N/A", …}` → `{"acc": 0.5}`; a filter other than none stays in the name."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in sorted(found.items())
        if "," in name and "_stderr," not in name and isinstance(value, int | float)
    }
