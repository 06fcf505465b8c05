"""A run's spec from flags, a file, the environment and `.env`. Every value keeps its origin, for error messages."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backprop_core.errors import (
    BackpropError,
    ConfigInvalid,
    FormatNewer,
    InputNotFound,
    InputValidationFailed,
    QuantizationUnknown,
)
from backprop_core.schema.records import Spec
from backprop_core.schema.specs import (
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    GenerationSpec,
    LineSpec,
    PublishSpec,
    RunSpec,
)
from flows.cli.spec_fields import ENTRY, children_of, pattern_of, spec_fields
from flows.cli.yaml_values import Path as Place
from flows.cli.yaml_values import parse, written

S = TypeVar("S", bound=Spec)
PREFIX = "BACKPROPAGATE_"
SHORT_SECTIONS = {"lora": ("training", "lora")}
SHORT_FIELDS = {("training", "lora", "r"): ("training", "lora", "rank")}
FORMAT, FORMATS = "format", 1  # of a file of fields; one without it is of format 1
MOST = 5  # invalid values that one error names
SHOWN = 60  # characters of an invalid value that an error repeats


@dataclass
class Draft:
    """The values set so far, and where each was set."""

    tree: Any = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)

    def put(self, place: Place, value: Any, origin: str) -> None:
        """Set one value. Mappings are merged, lists and scalars replaced; an entry of a list is named by its number."""
        self.tree = overlay(self.tree, place, value, origin)
        self.origins[place] = origin

    def lay(self, tree: Mapping[str, Any], origins: Mapping[Place, str], origin: str) -> None:
        """Set the values of a whole tree."""
        self.tree = merged(self.tree, tree, origin)
        self.origins |= origins

    def origin(self, place: Place) -> str:
        """Where the value at a place was set, or the part that contains it, or something in it."""
        above = (self.origins.get(place[:length]) for length in range(len(place), 0, -1))
        below = (origin for known, origin in self.origins.items() if known[: len(place)] == place)
        return next(origin for origin in chain(above, below) if origin)


@dataclass(frozen=True)
class LineFile:
    """The job file of a line: its values, and the line of each."""

    path: Path
    job: LineSpec
    fields: Mapping[str, Any]
    origins: Mapping[Place, str]


def overlay(tree: Any, place: Place, value: Any, origin: str) -> Any:
    """`tree` with `value` set at `place`."""
    if not place:
        return merged(tree, value, origin)
    head, *rest = place
    if tree is None and is_index(head):
        tree = []
    if isinstance(tree, list):
        if not is_index(head) or int(head) > len(tree):
            raise ConfigInvalid(
                f"a list of {len(tree)} has no entry {head} ({origin})", hint="use the number of an entry, from 0"
            )
        index = int(head)
        entry = overlay(tree[index] if index < len(tree) else None, tuple(rest), value, origin)
        return [*tree[:index], entry, *tree[index + 1 :]]
    known = tree if isinstance(tree, dict) else {}
    return {**known, head: overlay(known.get(head), tuple(rest), value, origin)}


def merged(low: Any, high: Any, origin: str) -> Any:
    """Two values as one: `high` overrides `low`, in mappings field by field."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return low | {name: overlay(low.get(name), (), value, origin) for name, value in high.items()}


def is_index(name: str) -> bool:
    return name.isdecimal() and len(name) < 6


def run_spec(
    *,
    flags: Mapping[str, Any],
    names: Mapping[str, str],
    settings: Sequence[str] = (),
    file: Path | None = None,
    preset: Mapping[str, Any] = MappingProxyType({}),
    job: LineFile | None = None,
) -> RunSpec:
    """The spec from flags, `--set` settings, a file, a line's job, a preset, the environment and `.env`.

    `flags` and `preset` map the path of a field to its value, None for a flag that is not given; `datasets.N.rows`
    means every dataset. `names` has the flags that errors name. Raises ConfigInvalid, QuantizationUnknown,
    InputNotFound.
    """
    draft = Draft()
    add_environment(draft, {name: value or "" for name, value in dotenv_values(".env").items()}, ".env: ")
    add_environment(draft, os.environ, "")
    for path, value in preset.items():
        draft.put(tuple(path.split(".")), value, "--preset")
    if job:
        draft.lay(job.fields, job.origins, str(job.path))
    if file:
        add_file(draft, file)
    for path, value in flags.items():
        if value is not None:
            add_flag(draft, tuple(path.split(".")), value, names[path])
    for setting in settings:
        add_setting(draft, setting)
    return validated(LineSpec, draft).run() if job else validated(RunSpec, draft)


def replayed(earlier: RunSpec, run_id: str, settings: Sequence[str]) -> RunSpec:
    """The complete spec of an earlier run, with `--set` changes. Raises ConfigInvalid, QuantizationUnknown."""
    tree = earlier.model_dump(mode="json")
    draft = Draft(tree, {(name,): f"run {run_id}" for name in tree})
    for setting in settings:
        add_setting(draft, setting)
    return validated(RunSpec, draft)


def export_spec(flags: Mapping[str, Any], names: Mapping[str, str]) -> ExportSpec:
    """The `export` part of a spec from flags. Raises QuantizationUnknown or ConfigInvalid."""
    return part_spec(ExportSpec, "export", flags, names)


def publish_spec(flags: Mapping[str, Any], names: Mapping[str, str]) -> PublishSpec:
    """The `publish` part of a spec from flags. Raises ConfigInvalid."""
    return part_spec(PublishSpec, "publish", flags, names)


def part_spec(model: type[S], part: str, flags: Mapping[str, Any], names: Mapping[str, str]) -> S:
    """One part of a spec from flags alone; `names` has the flag that errors name."""
    draft = Draft()
    draft.put((part,), {}, "")
    for name, value in flags.items():
        if value is not None:
            draft.put((part, name), value, names[name])
    return validated(model, draft, (part,))


def evaluation_spec(metric: str | None, settings: Sequence[str]) -> EvaluationSpec:
    """The `evaluation` part of a spec, with only the given fields set. Raises ConfigInvalid."""
    draft = Draft()
    draft.put(("evaluation",), {}, "")
    if metric is not None:
        draft.put(("evaluation", "metric"), metric, "--metric")
    for setting in settings:
        add_setting(draft, setting)
    if others := sorted(set(draft.tree) - {"evaluation"}):
        raise ConfigInvalid(f"evaluate cannot set {others[0]}", hint="it takes only fields of evaluation")
    return validated(EvaluationSpec, draft, ("evaluation",))


def generation_spec(flags: Mapping[str, str | None]) -> GenerationSpec:
    """The `evaluation.generation` part of a spec. Raises ConfigInvalid."""
    draft, place = Draft(), ("evaluation", "generation")
    draft.put(place, {}, "")
    for name, value in flags.items():
        if value is not None:
            draft.put((*place, name), value, f"--{name.replace('_', '-')}")
    return validated(GenerationSpec, draft, place)


def add_environment(draft: Draft, variables: Mapping[str, str], prefix: str) -> None:
    """Set every field that a variable names; the full name overrides the short one."""
    names = [name for name, value in variables.items() if value and place_of(name)]
    for name in sorted(names, key=lambda name: (name.count("__"), name)):
        draft.put(place_of(name), written(variables[name], name), f"{prefix}{name}")


def place_of(variable: str) -> Place:
    """`BACKPROPAGATE_LORA__R` → (training, lora, rank); empty for a variable that is not a field."""
    if not variable.upper().startswith(PREFIX):
        return ()
    head, *rest = variable[len(PREFIX) :].lower().split("__")
    if not rest and head not in RunSpec.model_fields:
        return ()
    place = (*SHORT_SECTIONS.get(head, (head,)), *rest)
    return SHORT_FIELDS.get(place, place)


def add_file(draft: Draft, file: Path) -> None:
    """A YAML file of a spec's fields. Raises InputNotFound, InputValidationFailed, ConfigInvalid, FormatNewer."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputNotFound(f"cannot read {file}: {error.strerror}", hint="pass a YAML file to --config") from error
    except UnicodeDecodeError as error:
        raise InputValidationFailed(f"{file} is not UTF-8", hint="pass a YAML file to --config") from error
    add_text(draft, text, file)


def add_text(draft: Draft, text: str, file: Path) -> None:
    """The text of such a file. Raises ConfigInvalid, FormatNewer."""
    document = parse(text, str(file))
    if not isinstance(document.value, dict | None):
        raise ConfigInvalid(f"{file} is not a mapping of fields", hint="write one FIELD: VALUE per line")
    values = dict(document.value or {})
    check_format(values.pop(FORMAT, FORMATS), f"{file}:{document.lines.get((FORMAT,), 1)}")
    origins = {place: f"{file}:{line}" for place, line in document.lines.items() if place != (FORMAT,)}
    draft.lay(values, origins, str(file))


def check_format(number: Any, where: str) -> None:
    """Raise FormatNewer for the number of a later format, ConfigInvalid for what is no number of a format."""
    if not re.fullmatch("[1-9][0-9]{0,5}", str(number)):
        raise ConfigInvalid(
            f"invalid value format={shown(number)} ({where})", hint=f"write format: {FORMATS}, or remove it"
        )
    if int(number) > FORMATS:
        raise FormatNewer(
            f"{where}: format {number}, and this version reads formats up to {FORMATS}",
            hint="install the version that wrote the file",
        )


def names_datasets(file: Path) -> bool:
    """Whether a YAML file of fields has datasets. Raises what `run_spec` raises for it."""
    draft = Draft()
    add_file(draft, file)
    return bool(draft.tree.get("datasets"))


def add_setting(draft: Draft, setting: str) -> None:
    """A setting of --set: `training.lora.rank=8`."""
    path, equals, value = setting.partition("=")
    if not equals or not path:
        raise ConfigInvalid(f"--set {setting} has no value", hint="write --set training.lora.rank=8")
    draft.put(tuple(path.split(".")), written(value, f"--set {path}"), f"--set {setting}")


def add_flag(draft: Draft, place: Place, value: Any, origin: str) -> None:
    """Set the value of a flag, in every dataset if it is a field of datasets."""
    head, *rest = place
    if ENTRY not in rest:
        draft.put(place, value, origin)
        return
    for index in range(len(draft.tree.get(head) or ())):
        draft.put((head, str(index), *rest[1:]), value, origin)


def validated(model: type[S], draft: Draft, part: Place = ()) -> S:
    """The spec of a draft or of one of its parts. Raises what `refusal` makes of a validation error."""
    value = draft.tree
    for name in part:
        value = value[name]
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False), draft, part) from error


def faults_of(model: type[Spec], draft: Draft) -> dict[str, BackpropError]:
    """Every fault of a draft, by the path of its field."""
    try:
        model.model_validate(draft.tree)
    except ValidationError as error:
        places = [(fault, tuple(map(str, fault["loc"]))) for fault in error.errors(include_url=False)]
        return {
            ".".join(place if fault["type"] == "extra_forbidden" else known_part(place)): refusal([fault], draft, ())
            for fault, place in places
        }
    return {}


def refusal(faults: Sequence[ErrorDetails], draft: Draft, part: Place) -> BackpropError:
    """The error to show for pydantic's: the misspelt names first, because others may follow from them."""
    misspelt = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    if misspelt:
        return unknown([(*part, *map(str, fault["loc"])) for fault in misspelt], draft)
    if len(faults) > 1:
        return together([refused(fault, draft, part) for fault in faults])
    return refused(faults[0], draft, part)


def refused(fault: ErrorDetails, draft: Draft, part: Place) -> BackpropError:
    """The error for one value that is missing or invalid."""
    place = known_part((*part, *map(str, fault["loc"])))
    path, named = ".".join(place), spec_fields()[pattern_of(place)]
    if fault["type"] == "missing" or (fault["type"] == "too_short" and path == "datasets"):
        return missing(path)
    reason = fault.get("ctx", {}).get("error")  # of a validator of ours
    kind = QuantizationUnknown if path == "export.quantizations" else ConfigInvalid
    return kind(
        f"invalid value {path}={shown(fault['input'])} ({draft.origin(place)})",
        hint=str(reason) if reason else f"{path} takes {named.allowed}: {named.help}",
    )


def together(errors: Sequence[BackpropError]) -> BackpropError:
    """Several errors as one, of the first one's kind; a union of types says the same twice."""
    first, messages = errors[0], list(dict.fromkeys(error.message for error in errors))
    hints = list(dict.fromkeys(error.hint for error in errors))
    return type(first)("; ".join(messages[:MOST]), hint="; ".join(hints[:MOST]))


def known_part(place: Place) -> Place:
    """The place without the parts that pydantic adds for branches of a union and keys of a mapping."""
    lengths = range(len(place), 0, -1)
    return next(place[:length] for length in lengths if pattern_of(place[:length]) in spec_fields())


def missing(path: str) -> ConfigInvalid:
    """The error for a field without a default that is not given."""
    if path == "datasets":
        return ConfigInvalid(
            "no dataset given", hint="name one with --data FILE, or under datasets: in the file of --config"
        )
    return ConfigInvalid(
        f"{path} is missing", hint=f"{path} takes {spec_fields()[pattern_of(path.split('.'))].allowed}"
    )


def unknown(places: Sequence[Place], draft: Draft) -> ConfigInvalid:
    """The error for unknown fields, all of them, with the fields that were probably meant."""
    named = [f"{'.'.join(place)} ({draft.origin(place)})" for place in places]
    hints = [meant_by(place, draft) for place in places]
    if len(places) == 1:
        return ConfigInvalid(f"unknown field {named[0]}", hint=hints[0])
    said = [f"{'.'.join(place)}: {hint}" for place, hint in zip(places, hints, strict=True)]
    return ConfigInvalid(f"unknown fields {', '.join(named)}", hint="; ".join(said))


def meant_by(place: Place, draft: Draft) -> str:
    """What was probably meant by an unknown field."""
    parent = place[:-1]
    if pattern_of(place) in spec_fields():
        return "this field belongs in a line's file; `backprop init LINE` writes one"
    if meant := closest(place, spec_fields()):
        return f"did you mean `{variable_of(meant) if PREFIX in draft.origin(place) else meant}`?"
    return f"fields of {'.'.join(parent) or 'a spec'}: {', '.join(children_of(pattern_of(parent)))}"


def variable_of(path: str) -> str:
    """The environment variable that sets a field."""
    return PREFIX + path.upper().replace(".", "__")


def closest(place: Place, paths: Iterable[str]) -> str | None:
    """The path that was probably meant: a similar spelling, or the same name in another part."""
    numbers = iter([part for part in place if part.isdecimal()])
    wanted, known = pattern_of(place), list(paths)
    same_name = [path for path in known if path.rpartition(".")[2] == wanted.rpartition(".")[2]]
    found = difflib.get_close_matches(wanted, known, n=1, cutoff=0.8) or same_name[:1]
    found = found or difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return ".".join(next(numbers, "0") if part == ENTRY else part for part in found[0].split(".")) if found else None


def shown(value: Any) -> str:
    """An invalid value, short enough for an error."""
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def windows(spec: RunSpec, runs: int, samples: int) -> RunSpec:
    """The spec with its one dataset cut into `runs` windows of `samples` rows: one task, one held-out set."""
    if len(spec.datasets) != 1:
        raise ConfigInvalid(
            f"--runs cuts one dataset, not {len(spec.datasets)}", hint="give one --data, or leave --runs out"
        )
    whole = spec.datasets[0]
    parts = [
        DatasetSpec(**{**whole.model_dump(), "skip": whole.skip + index * samples, "rows": samples})
        for index in range(runs)
    ]
    return spec.model_copy(update={"datasets": parts})
