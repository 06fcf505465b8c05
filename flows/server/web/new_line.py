"""A new line from a form: what was filled in, the job file that it becomes, and what is wrong with it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.schema.field_types import NAME, LineName, line_name
from backprop_core.schema.records import Record
from backprop_core.schema.specs import DatasetSpec, ModelSpec
from flows.cli import lines_file
from flows.cli.config_layers import Draft, validated
from flows.cli.yaml_edits import with_value
from flows.server.web import job_file, verbs
from flows.server.web.job_file import JobFile
from flows.server.web.state import Sources
from tasks.runs.allowed_paths import files, may_read, model
from tasks.runs.known_bases import hub_id
from tasks.runs.line_renaming import check_rows

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
EMPTY = {
    "name": "",
    "base": "",
    "source": "file",
    "path": "",
    "rows": "50",
    "when": "daily",
    "time": "03:00",
    "day": "Monday",
    "zone": "UTC",
    "goes": "nowhere",
    "ollama": "",
    "repo": "",
    "ask": "true",
}
FIELDS = {  # the field of the form for a field of the job file
    "line": "name",
    "model.name": "base",
    "datasets.0.path": "path",
    "min_new_rows": "rows",
    "schedule.cron": "time",
    "schedule.timezone": "zone",
    "publish.ollama": "ollama",
    "publish.repo": "repo",
}
FORMAT = "q8_0"  # of the file for Ollama: half of f16, and it can be written without llama.cpp


class NewLine(Record):
    """A new line, as its form asks for it."""

    name: LineName
    base: str = Field(min_length=1, description="Hub id, preset or directory.")
    path: str = Field("", description="Where the line reads rows; empty: the files that were added for it.")
    rows: int = Field(50, ge=1, description="New rows that a run needs.")
    when: Literal["never", "daily", "weekly"] = "never"
    time: str = Field("03:00", pattern=f"^{TIME.pattern}$")
    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"] = "Monday"
    zone: str = Field("UTC", min_length=1, description="Name of the time zone.")
    ollama: LineName | None = Field(None, description="Ollama model to publish to.")
    repo: str | None = Field(None, description="Hub repository to publish to, if no Ollama model is named.")
    ask: bool = Field(True, description="Whether a person approves each version.")

    @property
    def form(self) -> dict[str, str]:
        """The same as the fields of the form."""
        goes = "ollama" if self.ollama else "repo" if self.repo else "nowhere"
        texts = {"rows": str(self.rows), "ask": str(self.ask).lower(), "goes": goes}
        given = self.model_dump(include={"name", "base", "path", "when", "time", "day", "zone"})
        places = {"ollama": self.ollama or "", "repo": self.repo or "", "source": "path" if self.path else "file"}
        return {**EMPTY, **given, **texts, **places}


class Refused(NamedTuple):
    """What is wrong, by the field of the form."""

    faults: Mapping[str, BackpropError]


def filled(given: Mapping[str, str]) -> dict[str, str]:
    """The fields of the form, with what is not given."""
    return {**EMPTY, "zone": machine_zone(), **{name: value.strip() for name, value in given.items() if name in EMPTY}}


def machine_zone() -> str:
    """The name of this machine's time zone; UTC if it has none."""
    place = os.path.realpath("/etc/localtime")
    return (os.environ.get("TZ") or place.partition("/zoneinfo/")[2] or "UTC").removeprefix("Etc/")


def create(form: Mapping[str, str], sources: Sources) -> Refused | None:
    """Write the job file of a new line and deploy it; what is wrong if it is refused. Raises PrefectUnreachable."""
    try:
        file = JobFile(job_file.place_of_new(line_name(form["name"]), sources.config), "")
        check_rows(form["name"], sources.config)
    except ConfigInvalid as error:
        return Refused({"name": error})
    try:
        file = file._replace(text=text_of(form, sources))
        if faults := job_file.check(file).faults:
            return Refused({FIELDS.get(field, "name"): error for field, error in faults.items()})
        job_file.create(file, form["name"], sources)
    except Unclear as error:
        return Refused({error.field: error.fault})
    except ConfigInvalid as error:  # another person was first, or Prefect knows no such schedule
        return Refused({"name" if file.path.is_file() else "time": error})
    return None


class Unclear(Exception):
    """A field of the form that is no field of the job file."""

    def __init__(self, field: str, message: str, hint: str) -> None:
        self.field, self.fault = field, ConfigInvalid(message, hint=hint)


def text_of(form: Mapping[str, str], sources: Sources) -> str:
    """The job file: the template of `backprop init` with the values of the form. Raises Unclear."""
    text = lines_file.template(form["name"], data_of(form, sources))
    for field, value in values_of(form).items():
        text = with_value(text, tuple(field.split(".")), value)
    return text


def data_of(form: Mapping[str, str], sources: Sources) -> Path:
    """Where the line reads rows. Raises Unclear."""
    if form["source"] == "file":
        files = received(form["name"], sources)
        if not files:
            raise Unclear("path", "no file of rows was added", "choose a file, or name a path")
        return files[0].parent
    if not form["path"]:
        raise Unclear("path", "the path of the rows is missing", "name a file, a directory or a Hub dataset")
    return Path(form["path"])


def received(name: str, sources: Sources) -> list[Path]:
    """The files of rows that were added for a line of this name."""
    return sorted(sources.config.layout.received(name).glob("*")) if re.fullmatch(NAME, name) else []


def values_of(form: Mapping[str, str]) -> dict[str, Any]:
    """The values that the template does not have, by field. Raises Unclear."""
    if not form["base"]:
        raise Unclear("base", "the base model is missing", "choose one, or name a hub id or a directory")
    values: dict[str, Any] = {"model.name": hub_id(form["base"]), "min_new_rows": form["rows"] or "1"}
    if form["when"] != "never":
        values |= {"schedule.cron": cron_of(form), "schedule.timezone": form["zone"] or "UTC"}
    if form["goes"] in ("ollama", "repo"):
        if not form[form["goes"]]:
            raise Unclear(form["goes"], "the name is missing", "name it, or choose: nowhere yet")
        values[f"publish.{form['goes']}"] = form[form["goes"]]
    if form["goes"] == "ollama":
        values["export.quantizations"] = [FORMAT]
    if form["ask"] == "true":
        values["approval.ask"] = True
    return values


def cron_of(form: Mapping[str, str]) -> str:
    """The schedule as cron. Raises Unclear."""
    clock = TIME.fullmatch(form["time"])
    if clock is None:
        raise Unclear("time", f"{form['time'][:40] or 'nothing'} is not a time", "write hours and minutes, like 03:00")
    if form["when"] == "weekly" and form["day"] not in DAYS:
        raise Unclear("time", f"{form['day'][:40]} is not a weekday", f"choose one of {', '.join(DAYS)}")
    day = str((DAYS.index(form["day"]) + 1) % 7) if form["when"] == "weekly" else "*"
    return f"{int(clock[2])} {int(clock[1])} * * {day}"


def chosen(base: str, data: str | None) -> list[dict[str, Any]]:
    """What a run would choose for this base and these rows, each with its reason: `backprop estimate-vram`.

    Raises what that raises, ModelLoadFailed for a base that is not on this machine, PathForbidden as a run does.
    """
    spec = validated(ModelSpec, Draft({"name": base}))
    datasets = [validated(DatasetSpec, Draft({"path": data}))] if data else []
    for path in (*model(spec.name), *files(datasets)):
        if not may_read(path):
            raise job_file.outside(path)
    said = verbs.run("estimate-vram", f"--model={base}", *([f"--data={data}"] if data else []), limit=120)
    choices: list[dict[str, Any]] = said["choices"]
    return choices
