"""Verbs for this machine and its store: `info`, `doctor`, `init`, `estimate-vram`, `store`."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich.console import Group, RenderableType

from backprop_core.errors import BackpropError, ConfigInvalid, ConfirmationRequired, all_errors
from backprop_core.runtime.settings import settings
from flows.cli import lines_file, tables
from flows.cli.config_layers import run_spec, variable_of
from flows.cli.console import configure_logging, one_line, say, stderr_console
from flows.cli.flags import PLAIN, SETTINGS, OutputFlags
from flows.cli.main import Answer
from flows.cli.terminal_prompt import is_attended
from tasks.runs.estimate import estimate
from tasks.runs.machine_info import facts

if TYPE_CHECKING:
    from backprop_core.lines.prune import Pruned
    from tasks.runs.store_check import Checked

NO_DATA = "none"  # stands for the dataset of a spec that is only measured


def info(
    *,
    error_codes: Annotated[
        bool, Parameter(help="List every error code and its meaning.", negative="", show_default=False)
    ] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    return codes() if error_codes else machine()


def codes() -> Answer:
    """Every error code, its exit status and what it means."""
    rows = [error_row(code, error) for code, error in all_errors().items()]
    table = tables.table("code", "exit", "retryable", "meaning")
    for row in rows:
        table.add_row(row["code"], str(row["exit_status"]), "yes" if row["retryable"] else "", row["means"])
    return Answer(rows, table)


def error_row(code: str, error: type[BackpropError]) -> dict[str, Any]:
    means = " ".join((error.__doc__ or "").split())
    return {"code": code, "exit_status": error.exit_status, "retryable": error.retryable, "means": means}


def machine() -> Answer:
    """Versions, devices, settings and paths."""
    config = settings()
    known = {
        **facts(),
        "home": str(config.home_path),
        "store": str(config.store_path),
        **{variable_of(name): value for name, value in config.model_dump(mode="json").items()},
    }
    table = tables.table("", "")
    for name, value in known.items():
        table.add_row(name, one_line(written(value)))
    return Answer(known, table)


def doctor(*, output: OutputFlags = PLAIN) -> Answer:
    from flows.cli.prefect_environment import quiet_prefect

    quiet_prefect()
    from tasks.runs.doctor import examine

    parts = examine(settings())
    table = tables.table("", "", "found", "fix")
    for part in parts:
        table.add_row(part.name, tables.status_text(part.state), one_line(part.found), one_line(part.todo))
    wrong = any(part.state == "wrong" for part in parts)
    return Answer([part.model_dump() for part in parts], table, 2 if wrong else 0)


def written(value: Any) -> str:
    """A value as text."""
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "none" if value is None else str(value)


def init(
    line: Annotated[str, Parameter(help="Name of the line.")],
    /,
    *,
    output: OutputFlags = PLAIN,
) -> Answer:
    path = lines_file.write(line, settings())
    text = f"{path}\nEdit it, then run: backprop retrain --line {line} --plan"
    return Answer({"path": str(path)}, text)


def estimate_vram(
    *,
    model: Annotated[
        str | None, Parameter(help="Preset like qwen2.5-7b, hub id, or local directory.", show_default=False)
    ] = None,
    vram: Annotated[
        str | None,
        Parameter(help="Memory of the GPU, like 16GB; default: what is free on this machine.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, Parameter(help="Rows to train on; they decide what a run would choose.", show_default=False)
    ] = None,
    set: Annotated[list[str] | None, SETTINGS] = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    spec = run_spec(
        flags={"datasets": [{"path": data or NO_DATA}], "model.name": model},
        names={"datasets": "--data", "model.name": "--model"},
        settings=set or (),
    )
    made = estimate(spec, spec.datasets[0] if data else None, gib(vram) if vram else None)
    return Answer(made.model_dump(mode="json"), tables.vram(made))


def gib(text: str) -> float:
    """Memory of a GPU as it is sold: 16, 16GB and 16GiB all mean 16 GiB. Raises ConfigInvalid."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:Gi?B?)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ConfigInvalid(f"--vram {text} is not an amount of memory", hint="write --vram 16GB")
    return float(match[1])


def store_prune(
    *,
    keep: Annotated[PositiveInt, Parameter(help="Newest versions to keep of each line.")] = 3,
    max_gb: Annotated[
        PositiveFloat | None,
        Parameter(help="Keep fewer versions until the store is below this size; the champion always stays."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(help="List what would be deleted, and delete nothing.", negative="", show_default=False)
    ] = False,
    yes: Annotated[bool, Parameter(help="Delete without asking.", negative="", show_default=False)] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.prune import prune

    config = settings()
    configure_logging(config, verbose=output.verbose)
    most = None if max_gb is None else round(max_gb * 10**9)
    listed = prune(config, keep=keep, max_bytes=most, dry_run=True)
    if dry_run or listed.is_empty:
        return Answer(listed.model_dump(mode="json"), tables.pruned(listed, dry_run=True))
    if not yes and not agreed(listed):
        return Answer({"removed": None}, "Nothing was deleted.", 1)
    done = prune(config, keep=keep, max_bytes=most, only=listed, dry_run=False)
    return Answer(done.model_dump(mode="json"), tables.pruned(done, dry_run=False))


def agreed(listed: "Pruned") -> bool:
    """Show what would be deleted and ask. Raises ConfirmationRequired without a terminal."""
    if not is_attended():
        raise ConfirmationRequired(
            f"{listed.artifacts} artifacts would be deleted, but there is no terminal to ask on",
            hint="list them with --dry-run, delete them with --yes",
        )
    stderr_console().print(tables.pruned(listed, dry_run=True))
    say(f"Delete {listed.artifacts} artifacts and {listed.checkpoints} checkpoints? yes or no:")
    return sys.stdin.readline().strip().lower() in ("yes", "y")


def store_keep(
    ref: Annotated[
        str | None, Parameter(help="A run_id, a line (its champion) or line@version. Without it, list the pins.")
    ] = None,
    /,
    *,
    undo: Annotated[bool, Parameter(help="Remove the pin.", negative="", show_default=False)] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs import prune as pruning

    config = settings()
    if ref is None:
        known = pruning.kept(config)
        table = tables.table("pinned", "artifacts", right=("artifacts",))
        for name, count in known.items():
            table.add_row(name, str(count))
        return Answer(known, table if known else "Nothing is pinned.")
    if undo:
        name = pruning.release(ref, config)
        return Answer({"name": name, "kept": False}, f"{name} is no longer pinned")
    name, count = pruning.keep(ref, config)
    return Answer({"name": name, "kept": True, "artifacts": count}, f"{name} is pinned: {count} artifacts")


Place = Annotated[str, Parameter(help="A directory, or an s3:// address.")]


def store_copy(source: Place, target: Place, /, *, output: OutputFlags = PLAIN) -> Answer:
    from tasks.runs.store_copy import copy

    config = settings()
    configure_logging(config, verbose=output.verbose)
    done = copy(source, target, config)
    return Answer(done.model_dump(mode="json"), tables.copied(done), 3 if done.forgotten else 0)


def store_sync(one: Place, other: Place, /, *, output: OutputFlags = PLAIN) -> Answer:
    from tasks.runs.store_copy import sync

    config = settings()
    configure_logging(config, verbose=output.verbose)
    there, back = sync(one, other, config)
    both = Group(f"To {other}:", tables.copied(there), f"To {one}:", tables.copied(back))
    document = {"there": there.model_dump(mode="json"), "back": back.model_dump(mode="json")}
    return Answer(document, both, 3 if there.forgotten or back.forgotten else 0)


def store_check(
    *,
    repair: Annotated[
        bool,
        Parameter(
            help="Move damaged artifacts aside, forget cached results that are gone, and say what to run again.",
            negative="",
            show_default=False,
        ),
    ] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs import store_check

    if repair:
        found = store_check.repair(settings())
    else:
        count, findings = store_check.check(settings())
        found = store_check.Checked(artifacts=count, findings=findings)
    status = 0 if not found.findings else 3 if repair else 2
    return Answer(found.model_dump(), check_text(found), status)


def check_text(found: "Checked") -> RenderableType:
    """What a check found, as a table and a summary."""
    table = tables.table("artifact", "problem")
    for finding in found.findings:
        table.add_row(finding.digest[:12], one_line(finding.what))
    gone = sum(finding.missing for finding in found.findings)
    said = [f"{found.artifacts} artifacts, {len(found.findings) - gone} damaged, {gone} missing"]
    if done := found.repaired:
        said.append(f"{len(done.set_aside)} damaged artifacts set aside, {done.results} cached results dropped")
        said += [f"to make it again: backprop replay {run[:12]}" for run in done.replay]
    return Group(table, "", *said) if found.findings else Group(*said)


def presets(*, output: OutputFlags = PLAIN) -> Answer:
    from tasks.runs.estimate import preset_list

    known = preset_list()
    figures = ("parameters", "context", "rate")
    table = tables.table("preset", *figures, "model", right=figures)
    for one in known:
        table.add_row(one.preset, f"{one.parameters / 1e9:.1f}B", str(one.context), f"{one.learning_rate:g}", one.model)
    return Answer([one.model_dump() for one in known], table)
