"""The JSON document of every verb as a type. `python -m flows.cli.documents docs/schemas` writes their schemas."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, get_type_hints

from pydantic import ConfigDict, JsonValue, TypeAdapter, create_model
from typing_extensions import TypedDict

from backprop_core.schema.records import Record
from backprop_core.schema.refs import Answers, ErrorRecord, RunId, RunResult
from flows.cli.comparing import RunsCompared
from flows.cli.line import Deletion, Renaming
from flows.cli.line_transfer import Transferred
from flows.cli.verb_tables import GROUPS, verbs
from tasks.runs.estimate import Estimate, PresetRow
from tasks.runs.line_report import LineReport
from tasks.runs.line_state import LineSummary
from tasks.runs.machine_checks import Part
from tasks.runs.plan import Plan
from tasks.runs.run_log import LogLine
from tasks.runs.run_table import Format
from tasks.runs.upgrade import Upgrade
from tasks.tracking import RunSummary
from tasks.tracking.trackers.process import Synced

DIALECT = "https://json-schema.org/draft/2020-12/schema"
CLOSED = ConfigDict(extra="forbid")


class Failure(TypedDict):
    """What every verb prints with --json when it fails; exit status 1, 2, 3 or 130."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    run_id: RunId | None
    error: ErrorRecord


class Message(TypedDict):
    """A turn of a conversation."""

    role: str
    content: str


class Conversation(TypedDict):
    """What was said in a chat."""

    messages: list[Message]


class TwoAnswers(TypedDict):
    """One question with the answers of two models."""

    messages: list[dict[str, JsonValue]]
    a: str
    b: str


class AnswersCompared(TypedDict):
    """Two models and their answers."""

    a: str
    b: str
    answers: list[TwoAnswers]


class ExportedFile(TypedDict):
    """A file of the history."""

    path: str
    format: Format
    runs: int


class JobFile(TypedDict):
    """A job file that was written."""

    path: str


class Script(TypedDict):
    """The completion script of a shell, and where the shell looks for it."""

    shell: Literal["bash", "zsh", "fish"]
    put_into: str
    script: str


class ErrorCode(TypedDict):
    """An error code."""

    code: str
    exit_status: int
    retryable: bool
    means: str


class NothingDeleted(TypedDict):
    """The user said no."""

    removed: None


class NotDeleted(TypedDict):
    """The user said no."""

    deleted: Literal[False]


class Deleted(Deletion):
    """The line is deleted."""

    deleted: Literal[True]


class Renamed(Renaming):
    """The line is renamed."""

    renamed: Literal[True]


class Pin(TypedDict):
    """A pin that was set or removed."""

    name: str
    kept: bool
    artifacts: NotRequired[int]


class UserToken(TypedDict):
    """A token without its secret."""

    id: str
    made: str


class KnownUser(TypedDict):
    """A user of the pages."""

    name: str
    role: Literal["look", "act"]
    tokens: list[UserToken]


class RemovedUser(TypedDict):
    """A user who was removed."""

    name: str
    removed: Literal[True]


class NewToken(TypedDict):
    """A token, with the secret that is shown once."""

    name: str
    id: str
    token: str


class RevokedToken(TypedDict):
    """A token that is refused from now on."""

    name: str
    id: str
    revoked: Literal[True]


def documents() -> dict[str, Any]:
    """The type of each verb's document, by verb; those of two words too. `help` prints no document."""
    from flows.rebuild import Rebuilt
    from flows.server.audit import Entry
    from flows.server.deploy import Change
    from flows.server.serve import Addresses
    from flows.server.submit import Submitted

    run = RunResult | Plan | Submitted
    return {
        "demo": RunResult,
        **dict.fromkeys(("train", "multi-run", "retrain", "sweep", "rebase", "replay"), run),
        **dict.fromkeys(("promote", "evaluate", "export", "push", "release", "rollback", "show-run"), RunResult),
        "bench": RunResult | Plan,
        "resume": RunResult | Rebuilt,
        "generate": Answers,
        "chat": Conversation,
        "compare": AnswersCompared,
        "list-runs": list[RunSummary],
        "diff-runs": RunsCompared,
        "logs": list[LogLine],
        "export-runs": ExportedFile,
        "lines": list[LineSummary],
        "show-line": LineReport,
        "sync": Synced,
        "serve": Addresses,
        "ui": Addresses,
        "deploy": list[Change],
        "watch": dict[str, str],
        "init": JobFile,
        "estimate-vram": Estimate,
        "presets": list[PresetRow],
        "doctor": list[Part],
        "upgrade": Upgrade,
        "info": list[ErrorCode] | dict[str, JsonValue],
        "completion": Script,
        **of_data(),
        **of_store(),
        "line delete": Deletion | Deleted | NotDeleted,
        "line rename": Renaming | Renamed,
        **dict.fromkeys(("line export", "line import"), Transferred),
        **dict.fromkeys(("users add", "users role", "users password"), KnownUser),
        "users list": list[KnownUser],
        "users remove": RemovedUser,
        "users token": NewToken,
        "users revoke": RevokedToken,
        "users audit": list[Entry],
    }


def of_data() -> dict[str, Any]:
    """The documents of `backprop data`."""
    from flows.rebuild import Rebuilt
    from tasks.runs.data_forget import Forgotten
    from tasks.runs.data_preview import data_preview
    from tasks.runs.data_put import data_put, data_split
    from tasks.runs.data_report import Reports
    from tasks.runs.data_restore import data_restore
    from tasks.runs.data_trace import data_trace

    report = returned(Reports.examine)
    fine = create_model("Reports", __base__=Record, datasets=(list[report], ...))  # type: ignore[valid-type]
    refused = create_model("RefusedReports", __base__=fine, error=(ErrorRecord, ...))
    again = create_model("ForgottenAndRebuilt", __base__=Forgotten, rebuilt=(list[Rebuilt], ...))
    return {
        "data report": fine | refused,
        "data preview": returned(data_preview),
        "data put": returned(data_put),
        "data split": returned(data_split),
        "data trace": returned(data_trace),
        "data restore": returned(data_restore),
        "data forget": Forgotten | again,
    }


def of_store() -> dict[str, Any]:
    """The documents of `backprop store`."""
    from tasks.runs.prune import prune
    from tasks.runs.store_check import Checked
    from tasks.runs.store_copy import copy

    copied = returned(copy)
    both = create_model("BothCopied", __base__=Record, there=(copied, ...), back=(copied, ...))
    return {
        "store check": Checked,
        "store prune": returned(prune) | NothingDeleted,
        "store keep": Pin | dict[str, int],
        "store copy": copied,
        "store sync": both,
    }


def returned(function: Any) -> Any:
    """The type that a function returns."""
    return get_type_hints(function)["return"]


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each verb's document, by the name of its file, and that of a failure."""
    found = {verb.replace(" ", "-"): schema(type_, f"backprop {verb} --json") for verb, type_ in documents().items()}
    return found | {"failure": schema(Failure, "any verb with --json that fails")}


def schema(type_: Any, title: str) -> dict[str, Any]:
    made = TypeAdapter(type_).json_schema(mode="serialization")
    return {"$schema": DIALECT, **made, "title": title}


def with_documents() -> Iterator[str]:
    """Every verb that prints a document."""
    yield from (verb for verb in verbs() if verb != "help")
    for name, group in GROUPS.items():
        yield from (f"{name} {verb}" for verb in group.verbs)


def write(folder: Path) -> None:
    """Write all schemas, and remove those of verbs that are gone."""
    folder.mkdir(exist_ok=True)
    made = {folder / f"{name}.json": text(document) for name, document in schemas().items()}
    for path, content in made.items():
        path.write_text(content, encoding="utf-8")
    for path in set(folder.glob("*.json")) - made.keys():
        path.unlink()


def text(document: dict[str, Any]) -> str:
    """A schema with one line for each of its keys and each of its types."""
    types = ",\n".join(f" {line(name)}: {line(value)}" for name, value in sorted(document.get("$defs", {}).items()))
    rest = {name: line(value) for name, value in sorted(document.items()) if name != "$defs"}
    parts = {"$defs": f"{{\n{types}\n}}", **rest} if types else rest
    return "{\n" + ",\n".join(f"{line(name)}: {value}" for name, value in parts.items()) + "\n}\n"


def line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
