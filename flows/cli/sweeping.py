"""The verb that tries settings."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from backprop_core.errors import ConfigInvalid
from flows.cli import run_here
from flows.cli.flags import NOTHING, FlagSet, one_dataset
from flows.cli.main import Answer
from flows.cli.running import answer, handed_over, planned, watched
from flows.cli.yaml_values import written
from tasks.runs.sweep import prepare


def sweep(*, flags: FlagSet = NOTHING) -> Answer:
    fixed, values = apart(flags.set or ())
    spec = one_dataset(replace(flags, set=fixed).spec(), "sweep")
    if flags.submit:
        return handed_over("sweep", spec, flags, settings=values)
    start = partial(prepare, spec, values)
    if flags.plan:
        return planned(lambda: run_here.plan_of("sweep", start, fresh=flags.fresh), flags)
    with watched(flags):
        return answer(run_here.run("sweep", spec, fresh=flags.fresh, settings=values), explain=flags.explain)


def apart(settings: Iterable[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """The settings with one value, and the values of each of the others. Raises ConfigInvalid."""
    fixed, values = list[str](), dict[str, list[Any]]()
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigInvalid(f"--set {setting} has no value", hint="write --set training.learning_rate=1e-4,5e-4")
        found = written(f"[{text}]", f"--set {path}")
        if isinstance(found, list) and len(found) > 1:
            values[path] = found
        else:
            fixed.append(setting)
    return fixed, values
