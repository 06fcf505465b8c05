"""The settings of a line: the fields of its job file with their values, and a change of some of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.schema.records import Record
from flows.cli.spec_fields import ENTRY, spec_fields
from flows.cli.spec_fields import Field as SpecField
from flows.cli.yaml_edits import inline, value_at, with_value, without_value
from flows.cli.yaml_values import parse, written
from flows.server.web import job_file
from flows.server.web.job_file import JobFile
from flows.server.web.state import Sources

DATA = f"datasets.{ENTRY}."  # a line has one dataset: its fields are shown, those of other lists are not
TIMES = ("schedule.cron", "schedule.timezone", "drift.cron", "drift.timezone")  # Prefect checks them
NOT_SET = {"line", "datasets"}  # the name of the file, and the list with the one dataset


class Setting(Record):
    """A field of a job file."""

    path: str
    value: str = Field(description="As it is written; empty: the default.")
    allowed: str
    default: str
    help: str
    choices: list[str] = Field(description="The only values; empty if there are more.")
    structured: bool = Field(description="Whether lists or mappings are allowed, as YAML.")

    @property
    def is_long(self) -> bool:
        return "\n" in self.value or len(self.value) > 80


class LineSettings(Record):
    """The job file of a line."""

    line: str
    file: str
    digest: str = Field(description="Of the file; a change says from which file it was made.")
    settings: list[Setting]


class SettingsChange(Record):
    """Values to set; an empty one removes the field, so that it has its default."""

    digest: str
    values: dict[str, str]


def settings_of(line: str, sources: Sources) -> LineSettings:
    """The settings of a line. Raises RunUnknown, InputNotFound, ConfigInvalid for a file that is no YAML."""
    file = job_file.read(line, sources)
    known = parse(file.text, str(file.path)).value or {}
    return LineSettings(line=line, file=str(file.path), digest=file.digest, settings=list(every(known)))


def every(known: Any) -> Iterator[Setting]:
    """The fields that can be set one by one, with their values in a job file."""
    for field in shown_fields():
        place = field.path.replace(DATA, "datasets.0.")
        value = value_at(known, tuple(place.split(".")))
        yield Setting(
            path=place,
            value="" if value is None else value if isinstance(value, str) else inline(value),
            allowed=field.allowed,
            default=field.default,
            help=field.help,
            choices=list(field.choices),
            structured=field.structured,
        )


def shown_fields() -> Iterator[SpecField]:
    """The fields of a job file that have no fields below; a list of parts is one field."""
    fields = spec_fields()
    parents = {path.rpartition(".")[0] for path in fields}
    for path, field in fields.items():
        is_part = path in parents
        in_list = ENTRY in path.removeprefix(DATA).split(".")
        if not is_part and not in_list and path not in NOT_SET:
            yield field


def change(line: str, wanted: SettingsChange, sources: Sources) -> dict[str, BackpropError]:
    """Write the values and deploy the line. Returns what is wrong, by field; then nothing has changed.

    Raises RunUnknown, InputNotFound, FileChanged, PlaceUnusable.
    """
    now = settings_of(line, sources)
    file = job_file.read(line, sources)
    before = job_file.check(file).job
    text, faults = edited(file.text, now, wanted.values)
    new = JobFile(file.path, text)
    if faults := faults or nearest(job_file.check(new, before).faults, now):
        return faults
    try:
        job_file.save(new, wanted.digest, line, sources)
    except ConfigInvalid as error:  # Prefect knows no such schedule
        return {next((field for field in TIMES if f" {field}: " in error.message), ""): error}
    return {}


def edited(text: str, now: LineSettings, values: Mapping[str, str]) -> tuple[str, dict[str, BackpropError]]:
    """The text with those values that differ, and what cannot be written."""
    faults: dict[str, BackpropError] = {}
    known = {setting.path: setting for setting in now.settings}
    for path in sorted(values.keys() - known.keys()):
        faults[""] = ConfigInvalid(f"unknown field {path[:100]}", hint="load the page again")
    for path, setting in known.items():
        value = values.get(path, setting.value).replace("\r\n", "\n").strip()
        if value == setting.value.strip():
            continue
        try:
            text = changed(text, setting, value)
        except ConfigInvalid as error:
            faults[path] = error
    return text, faults


def changed(text: str, setting: Setting, value: str) -> str:
    """The text with one value. Raises ConfigInvalid."""
    place = tuple(setting.path.split("."))
    if not value:
        return without_value(text, place)
    return with_value(text, place, written(value, setting.path) if setting.structured else value)


def nearest(faults: Mapping[str, BackpropError], now: LineSettings) -> dict[str, BackpropError]:
    """The faults by fields that are shown: one in a list stands beside the list; empty for any other."""
    shown = {setting.path for setting in now.settings}
    return {next((path for path in above(field) if path in shown), ""): error for field, error in faults.items()}


def above(field: str) -> Iterator[str]:
    """A field, and the parts that contain it."""
    while field:
        yield field
        field = field.rpartition(".")[0]
