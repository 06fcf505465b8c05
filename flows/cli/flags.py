"""Flags that several verbs share. Their help, ranges and defaults come from the specs."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from backprop_core.errors import ConfigInvalid
from backprop_core.schema.refs import Status
from backprop_core.schema.specs import RunSpec
from flows.cli.config_layers import LineFile, run_spec
from flows.cli.spec_fields import spec_fields

if TYPE_CHECKING:
    from tasks.tracking import RunFilter

PATH = "path"  # metadata of a flag: the field of the spec that it sets
TASK = Group("What to do", sort_key=1)
TRAINING = Group("How to train", sort_key=2)
SHIPPING = Group("Where it goes", sort_key=3)
SPEC = Group("Any other field", sort_key=4)
OUTPUT = Group("Output", sort_key=5)
NUMBERS = {"an integer": "INT", "a number": "FLOAT"}  # flags that take a number, and what --help shows for it
UNSAID = ("text", "true or false", "")  # what a flag shows without words

SETTINGS = Parameter(
    help="Set any field: --set training.lora.rank=8. Repeat it for more.",
    negative="",
    show_default=False,
    group=SPEC,
)


def flag(group: Group) -> Callable[[str], Any]:
    """A flag for one field of a spec. It stays text: the spec parses it, so that an error names the range."""

    def of(path: str) -> Any:
        known = spec_fields()[path]
        default = f"[default: {known.default}]" if known.default not in ("none", "required", "false") else ""
        may_be = known.allowed.removesuffix(", or null").replace("a list, each one of", "comma-separated, each one of")
        number = next((text for text in NUMBERS if known.allowed.startswith(text)), None)
        if number:  # what --help shows for it says that it is one
            may_be = may_be.removeprefix(number).lstrip()
        parts = [known.help, f"{may_be[:1].upper()}{may_be[1:]}." if may_be not in UNSAID else "", default]
        return Parameter(
            help=" ".join(filter(None, parts)), group=group, show_default=False, metavar=NUMBERS.get(number or "")
        )

    return of


Force = Annotated[
    bool,
    Parameter(
        help="Go live even if the gate refuses it; needs --reason.", negative="", show_default=False, group=SHIPPING
    ),
]
Reason = Annotated[str, Parameter(help="Why; kept in the record with your name.", show_default=False, group=SHIPPING)]


Explain = Annotated[
    bool,
    Parameter(
        help="Also say why a stage was not taken from the cache.",
        negative="",
        show_default=False,
        group=OUTPUT,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Output:
    """How to print the result. The outermost frame reads these flags itself, since parsing the others can fail."""

    json: Annotated[bool, Parameter(help="Print one JSON document.", negative="", show_default=False, group=OUTPUT)] = (
        False
    )
    verbose: Annotated[
        bool, Parameter(help="Log more, with tracebacks.", negative="", show_default=False, group=OUTPUT)
    ] = False


def setting(path: str) -> Any:
    return field(default=None, metadata={PATH: path})


do, how, ship = flag(TASK), flag(TRAINING), flag(SHIPPING)


@dataclass(frozen=True, kw_only=True)
class Flags(Output):
    """The flags of verbs that train."""

    data: Annotated[list[str] | None, do("datasets.N.path"), Parameter(name="--data", negative="")] = None
    line: Annotated[str | None, do("line")] = setting("line")
    model: Annotated[str | None, do("model.name")] = setting("model.name")
    heldout: Annotated[str | None, do("datasets.N.heldout")] = setting("datasets.N.heldout")
    rows: Annotated[str | None, do("datasets.N.rows")] = setting("datasets.N.rows")
    strategy: Annotated[str | None, do("merge.strategy")] = setting("merge.strategy")
    export: Annotated[str | None, do("export.quantizations")] = setting("export.quantizations")
    steps: Annotated[str | None, how("training.steps")] = setting("training.steps")
    epochs: Annotated[str | None, how("training.epochs")] = setting("training.epochs")
    batch_size: Annotated[str | None, how("training.batch_size")] = setting("training.batch_size")
    seed: Annotated[str | None, how("training.seed")] = setting("training.seed")
    inexact_resume: Annotated[bool | None, how("training.inexact_resume"), Parameter(negative="")] = setting(
        "training.inexact_resume"
    )
    fresh: Annotated[
        bool, Parameter(help="Run every stage again, ignoring the cache.", negative="", show_default=False, group=TASK)
    ] = False
    plan: Annotated[
        bool,
        Parameter(
            help="Show what would run and what it needs; then stop.",
            negative="",
            show_default=False,
            group=TASK,
        ),
    ] = False
    submit: Annotated[
        bool,
        Parameter(
            help="Run it at its deployment on the Prefect server instead.",
            negative="",
            show_default=False,
            group=TASK,
        ),
    ] = False
    explain: Explain = False
    preset: Annotated[
        str | None,
        Parameter(help="A common model with settings: see `backprop presets`.", group=SPEC),
    ] = None
    config: Annotated[Path | None, Parameter(help="YAML file with any fields of the spec.", group=SPEC)] = None
    set: Annotated[list[str] | None, SETTINGS] = None

    def spec(self, job: LineFile | None = None) -> RunSpec:
        """The complete spec, over a line's job if there is one. Raises ConfigInvalid."""
        given = {f.metadata[PATH]: getattr(self, f.name) for f in fields(self) if PATH in f.metadata}
        names = {f.metadata[PATH]: f"--{f.name.replace('_', '-')}" for f in fields(self) if PATH in f.metadata}
        return run_spec(
            flags={
                "datasets": [{"path": path} for path in self.data] if self.data else None,
                **{path: listed(path, value) for path, value in given.items()},
            },
            names={"datasets": "--data", **names},
            settings=self.set or (),
            file=self.config,
            preset=fields_of(self.preset) if self.preset else {},
            job=job,
        )


def listed(path: str, value: str | bool | None) -> str | bool | list[str] | None:
    """A flag's value as its field expects it: `q4_k_m,f16` is a list."""
    return value.split(",") if isinstance(value, str) and path == "export.quantizations" else value


def one_dataset(spec: RunSpec, verb: str) -> RunSpec:
    """The spec. Raises ConfigInvalid if it has more than one dataset."""
    if len(spec.datasets) > 1:
        raise ConfigInvalid(
            f"{verb} takes one dataset, not {len(spec.datasets)}", hint="for several datasets: backprop multi-run"
        )
    return spec


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Which runs of the history are meant."""

    children: Annotated[bool, Parameter(help="Also the LoRA runs of each run.", negative="", show_default=False)] = (
        False
    )
    line: Annotated[str | None, Parameter(help="Only runs of this line.", show_default=False)] = None
    status: Annotated[Status | None, Parameter(help="Only runs with this status.", show_default=False)] = None
    since: Annotated[
        datetime | None, Parameter(help="Only runs that began on this day or later.", show_default=False)
    ] = None

    def filter(self) -> "RunFilter":
        """The same for the history. Raises ConfigInvalid."""
        from tasks.tracking import RunFilter

        return RunFilter(children=self.children, line=self.line, status=self.status, since=self.since)


WhichRuns = Annotated[RunFlags, Parameter(name="*")]
OutputFlags = Annotated[Output, Parameter(name="*")]
RunRef = Annotated[str, Parameter(help="A run_id, or the start of one.")]
MadeRef = Annotated[str, Parameter(help="A run_id or the start of one, a line (its champion), or line@version.")]
AdapterName = Annotated[
    str,
    Parameter(
        help="A run_id or the start of one, a line (its champion), line@version, or a directory with a PEFT adapter."
    ),
]
BaseName = Annotated[
    str | None, Parameter(help="Base model of the adapter in a directory; default: the one its config names.")
]
FlagSet = Annotated[Flags, Parameter(name="*")]
PLAIN, NOTHING, EVERY = Output(), Flags(), RunFlags()


def fields_of(preset: str) -> dict[str, Any]:
    """The spec fields that a preset sets, by path. Raises ConfigInvalid."""
    from tasks.runs.estimate import preset_fields

    return preset_fields(preset)
