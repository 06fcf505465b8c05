"""The verb that compares settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import line_name
from backprop_core.schema.specs import BenchSpec, RunSpec
from flows.cli import run_here, tables
from flows.cli.config_layers import run_spec
from flows.cli.console import configure_logging
from flows.cli.flags import SETTINGS, SPEC, TASK, Output, how
from flows.cli.main import Answer
from flows.cli.prefect_environment import quiet_prefect
from flows.cli.running import answer, watched
from tasks.runs.resolve_bench import datasets_in, is_directory, of_datasets, of_line

if TYPE_CHECKING:
    from tasks.runs.plan import Plan

NAME = "bench"
LISTS = ("strategies", "replay", "rates")


def of_bench(field: str) -> Any:
    """The help of a flag, from the spec."""
    told = BenchSpec.model_fields[field]
    commas = " Comma-separated." if field in LISTS else ""
    default = ",".join(f"{one}" for one in told.default) if isinstance(told.default, list) else told.default
    return Parameter(
        help=f"{told.description}{commas}" + (f" [default: {default}]" if default else ""),
        group=TASK,
        show_default=False,
    )


def switch(told: str) -> Any:
    return Parameter(help=told, negative="", show_default=False, group=TASK)


@dataclass(frozen=True, kw_only=True)
class Compared(Output):
    """The flags of `bench`."""

    strategies: Annotated[str | None, of_bench("strategies")] = None
    replay: Annotated[str | None, of_bench("replay")] = None
    rates: Annotated[str | None, of_bench("rates")] = None
    orders: Annotated[str | None, of_bench("orders")] = None
    seeds: Annotated[str | None, of_bench("seeds")] = None
    rows: Annotated[str | None, of_bench("rows")] = None
    model: Annotated[str | None, how("model.name")] = None
    epochs: Annotated[str | None, how("training.epochs")] = None
    set: Annotated[list[str] | None, SETTINGS] = None
    config: Annotated[Path | None, Parameter(help="YAML file with any fields of the spec.", group=SPEC)] = None
    plan: Annotated[bool, switch("Show what is cached, what would run, and the time and disk it needs; then stop.")] = (
        False
    )
    fresh: Annotated[bool, switch("Run every stage again, ignoring the cache.")] = False

    @property
    def compare(self) -> BenchSpec:
        """What is compared. Raises ConfigInvalid."""
        given = {name: value for name in BenchSpec.model_fields if (value := getattr(self, name)) is not None}
        try:
            return BenchSpec.model_validate(
                {name: value.split(",") if name in LISTS else value for name, value in given.items()}
            )
        except ValidationError as error:
            [fault, *_] = error.errors(include_url=False)
            name = str(fault["loc"][0])
            raise ConfigInvalid(f"invalid value --{name} {given[name]}", hint=str(fault["msg"])) from error

    def spec(self, directory: Path) -> RunSpec:
        """The spec of a comparison on the files of a directory. Raises ConfigInvalid, NoRows."""
        datasets = [one.model_dump(mode="json", exclude_unset=True) for one in datasets_in(directory)]
        flags = {"line": NAME, "datasets": datasets, "model.name": self.model, "training.epochs": self.epochs}
        names = {"line": "bench", "datasets": str(directory), "model.name": "--model", "training.epochs": "--epochs"}
        return run_spec(flags=flags, names=names, settings=self.set or (), file=self.config)


FlagSet = Annotated[Compared, Parameter(name="*")]


def bench(
    place: Annotated[str, Parameter(help="A line, or a directory: a file a task, or TASK.train and TASK.test files.")],
    /,
    *,
    flags: FlagSet = Compared(),
) -> Answer:
    compare = flags.compare
    if is_directory(place, settings()):
        return on_directory(flags.spec(Path(place)), compare, flags)
    if flags.set or flags.config or flags.model or flags.epochs:
        raise ConfigInvalid(
            f"line {place} has its own base and settings", hint="remove --model, --epochs, --set and --config"
        )
    return on_line(line_name(place), compare, flags)


def on_directory(spec: RunSpec, compare: BenchSpec, flags: Compared) -> Answer:
    if flags.plan:
        return planned(lambda store: of_datasets(spec, compare, store), flags)
    with watched(flags):
        fields = {name: getattr(spec, name) for name in ("datasets", "model", "training", "merge", "evaluation")}
        files = run_here.files_of(NAME, spec)
        return answer(run_here.call(NAME, files=files, compare=compare, fresh=flags.fresh, **fields))


def on_line(line: str, compare: BenchSpec, flags: Compared) -> Answer:
    if flags.plan:
        return planned(lambda store: of_line(line, compare, store), flags)
    with watched(flags):
        return answer(run_here.call(NAME, line=line, compare=compare, fresh=flags.fresh))


def planned(start: Any, flags: Compared) -> Answer:
    """What a comparison would do."""
    configure_logging(settings(), verbose=flags.verbose)
    quiet_prefect()
    from flows.steps.comparison import compared
    from tasks.runs.plan import planned

    made: Plan = planned(start, compared, fresh=flags.fresh)
    return Answer(made.model_dump(mode="json"), tables.plan(made))
