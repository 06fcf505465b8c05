"""Verbs for a line as a whole: `line delete`, `line rename`."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from backprop_core.errors import ConfigInvalid, ConfirmationRequired, RunActive, RunUnknown
from backprop_core.runtime.local_user import local_user
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.field_types import line_name
from backprop_core.schema.records import Record
from flows.cli import lines_file, yaml_edits
from flows.cli.config_layers import LineFile
from flows.cli.console import configure_logging, say
from flows.cli.flags import PLAIN, OutputFlags
from flows.cli.main import Answer
from flows.cli.prefect_environment import connected, quiet_prefect
from flows.cli.terminal_prompt import is_attended
from flows.server.serve import running
from tasks.runs import job_files, line_deletion, line_renaming


class Deletion(Record):
    """What deleting a line does, or has done."""

    line: str
    versions: list[int]
    live: int | None
    bytes: int
    job_file: str | None
    deployments: list[str]

    @property
    def sentences(self) -> list[str]:
        """What happens to each part, in the order in which people ask."""
        count = len(self.versions)
        kept = f"{self.bytes / 10**6:.1f} MB of files stay until `backprop store prune` frees them"
        live = f"; version {self.live} is live" if self.live else ""
        return [
            f"Store: {count} version{'' if count == 1 else 's'} of {self.line} can no longer be used{live}; {kept}."
            if count
            else f"Store: {self.line} has no version.",
            f"Job file: {self.job_file} is renamed; its comments stay in it." if self.job_file else "Job file: none.",
            f"Prefect: deployments and schedules go: {', '.join(self.deployments)}; runs of the past stay."
            if self.deployments
            else "Prefect: no server is named or running here; schedules go when `serve` starts or with `deploy`.",
            "MLflow: runs stay; the registered model is renamed at the next `backprop sync` or run.",
            "Ollama and the Hub: what was published stays. Remove it there: ollama rm, or the page of the repository.",
            "Data: the rows stay where they are.",
        ]


def line_delete(
    line: Annotated[str, Parameter(help="Name of the line.")],
    /,
    *,
    dry_run: Annotated[
        bool, Parameter(help="Say what would happen, and delete nothing.", negative="", show_default=False)
    ] = False,
    yes: Annotated[bool, Parameter(help="Delete without asking.", negative="", show_default=False)] = False,
    by: Annotated[str | None, Parameter(help="Who deletes it; default: this account.", show_default=False)] = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    who = by or local_user()
    address = server(config)
    planned = plan(line_name(line), who, config, address)
    if dry_run:
        return Answer(planned.model_dump(), "\n".join(planned.sentences))
    if not yes and not agreed(planned):
        return Answer({"deleted": False}, "Nothing was deleted.", 1)
    carry_out(planned, who, config, address)
    return Answer({"deleted": True, **planned.model_dump()}, f"Line {line} is deleted.")


def plan(line: str, who: str, config: Settings, address: str | None) -> Deletion:
    """What deleting a line would do, with the Prefect server at this address. Raises RunUnknown, RunActive."""
    stored, job = line_deletion.would_delete(line, who, config), lines_file.place(line, config)
    if stored is None and not job.is_file():
        raise RunUnknown(f"there is no line {line}", hint="`backprop lines` lists all lines")
    return Deletion(
        line=line,
        versions=stored.versions if stored else [],
        live=stored.live if stored else None,
        bytes=stored.bytes if stored else 0,
        job_file=str(job) if job.is_file() else None,
        deployments=[f"retrain/{line}", f"drift/{line}"] if address else [],
    )


def server(config: Settings) -> str | None:
    """The address of the Prefect server that is named, or of this home's `serve`."""
    named = os.environ.get("PREFECT_API_URL")
    serving = None if named else running(config)
    return named or (serving.api if serving else None)


def agreed(planned: Deletion) -> bool:
    """Say what would happen, and ask for the line's name. Raises ConfirmationRequired without a terminal."""
    if not is_attended():
        raise ConfirmationRequired(
            f"line {planned.line} would be deleted, but there is no terminal to ask on",
            hint="see what would happen with --dry-run, delete it with --yes",
        )
    say("\n".join([*planned.sentences, f"Type {planned.line} to delete it:"]))
    return sys.stdin.readline().strip() == planned.line


def carry_out(planned: Deletion, who: str, config: Settings, address: str | None) -> None:
    """Prefect first, so that nothing is lost if it is away; then the job file, then the records.

    Raises RunActive while a run of the line works, and what `deploy` raises.
    """

    def first() -> None:
        if address:
            undeploy(planned.line, config, address)
        for job in lines_file.places(planned.line, config):
            if job.is_file():
                line_deletion.set_aside(job)

    line_deletion.delete(planned.line, who, config, first)


def undeploy(line: str, config: Settings, address: str) -> None:
    """Remove the deployments of a line from Prefect, unless one of its runs has begun or is due. Raises RunActive."""
    os.environ["PREFECT_API_URL"] = address
    quiet_prefect()
    with connected():
        from flows.server.deploy import undeploy_line

        check_idle(line, address)
        undeploy_line(config, line)


def check_idle(line: str, address: str) -> None:
    """Raise RunActive if Prefect says that a run of the line has begun or is due."""
    from prefect.settings import get_current_settings

    from flows.server.web.line_runs import at_work
    from flows.server.web.prefect_api import PrefectApi

    password = get_current_settings().api.auth_string
    api = PrefectApi(address, password.get_secret_value() if password else None)
    try:
        busy = at_work(api, line)
    finally:
        api.close()
    if busy:
        raise RunActive(f"{busy[0].name} of line {line} has not ended", hint="wait for it, or stop it")


class Renaming(Record):
    """What renaming a line does, or has done."""

    line: str
    to: str
    versions: list[int]
    job_file: str | None
    deployments: list[str]

    @property
    def sentences(self) -> list[str]:
        """What happens to each part."""
        count, old = len(self.versions), self.line
        return [
            f"Store: {count} version{'' if count == 1 else 's'} of {old}, its runs, votes and rejected candidates get "
            "the new name. Nothing is trained or split anew.",
            f"Job file: {self.job_file} is renamed to {self.to}.yaml." if self.job_file else "Job file: none.",
            f"Prefect: {', '.join(self.deployments)} get the new name, and stay paused; past runs keep {old}."
            if self.deployments
            else "Prefect: no server is named or running here; `serve` or `deploy` makes the new deployments.",
            "MLflow: experiment, registered model, curve and runs are renamed at the next `backprop sync` or run.",
            "Ollama and the Hub: names stay, as the job file says them.",
            f"Data: the rows stay where they are, and so does their task, {old} unless the job file names one.",
        ]


def line_rename(
    line: Annotated[str, Parameter(help="Name of the line.")],
    to: Annotated[str, Parameter(help="Its new name.")],
    /,
    *,
    dry_run: Annotated[
        bool, Parameter(help="Say what would happen, and rename nothing.", negative="", show_default=False)
    ] = False,
    by: Annotated[str | None, Parameter(help="Who renames it; default: this account.", show_default=False)] = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    who, address = by or local_user(), server(config)
    planned = renaming(line_name(line), line_name(to), who, config, address)
    if not dry_run:
        move(planned, who, config, address)
        return Answer({"renamed": True, **planned.model_dump()}, f"Line {line} is {to} now.")
    return Answer(planned.model_dump(), "\n".join(planned.sentences))


def renaming(line: str, to: str, who: str, config: Settings, address: str | None) -> Renaming:
    """What renaming a line would do. Raises RunUnknown, RunActive, and ConfigInvalid for a name that is taken."""
    stored, job = line_renaming.would_rename(line, to, who, config), lines_file.place(line, config)
    if stored is None and not job.is_file():
        raise RunUnknown(f"there is no line {line}", hint="`backprop lines` lists all lines")
    taken = [path for path in lines_file.places(to, config) if path.is_file() and job.is_file()]
    if taken and not line_renaming.is_cut_off(line, to, config):
        raise ConfigInvalid(f"{taken[0]} exists already", hint="choose another name")
    return Renaming(
        line=line,
        to=to,
        versions=stored.versions if stored else [],
        job_file=str(job) if job.is_file() else None,
        deployments=[f"retrain/{line}", f"drift/{line}"] if address else [],
    )


def move(planned: Renaming, who: str, config: Settings, address: str | None) -> None:
    """Take the deployments away, rename records and job file, deploy under the new name.

    Raises RunActive while a run of the line works, and what `deploy` raises.
    """
    line, to, paused = planned.line, planned.to, False

    def first() -> None:
        nonlocal paused
        if address:
            paused = is_paused(line, address)
            undeploy(line, config, address)

    def last() -> None:
        for job in lines_file.places(line, config):
            if job.is_file():
                rename_job_file(job, line, to)
        if address and (found := lines_file.find(to, config)):
            deploy_as(found, config, address, paused=paused)

    line_renaming.rename(line, to, who, config, first, last)


def rename_job_file(job: Path, line: str, to: str) -> None:
    """Rename a job file, and write its name where it says it: in `line`, and in the comments that `init` wrote."""
    text = for_line(job.read_text(encoding="utf-8"), line, to)
    new = job.with_name(f"{to}.yaml")
    if not new.is_file() or new.read_text(encoding="utf-8") != text:  # else a kill came between these two
        job_files.create(new, text)
    job.unlink()


def for_line(text: str, line: str, to: str) -> str:
    """The text of a job file with another name of the line."""
    if "line" in yaml_edits.keys_of(yaml_edits.composed(text)):
        text = yaml_edits.with_value(text, ("line",), to)
    for words in ("The job of the line {}.", "backprop retrain --line {}`", "the deployment retrain/{} "):
        text = text.replace(words.format(line), words.format(to))
    return text


def is_paused(line: str, address: str) -> bool:
    """Whether a person has paused every schedule of a line."""
    os.environ["PREFECT_API_URL"] = address
    quiet_prefect()
    with connected():
        from flows.server.deploy import is_paused

        return is_paused(line)


def deploy_as(job: LineFile, config: Settings, address: str, *, paused: bool) -> None:
    """Deploy a job file; with its schedules paused if they were."""
    os.environ["PREFECT_API_URL"] = address
    quiet_prefect()
    with connected():
        from flows.server.deploy import deploy_line, pause_line

        deploy_line(config, job.job, pool=config.pool, dry_run=False)
        if paused:
            pause_line(job.job.line)
