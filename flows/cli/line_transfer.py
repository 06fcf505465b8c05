"""Verbs that move a line between homes: `line export`, `line import`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.local_user import local_user
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.field_types import line_name
from backprop_core.schema.gate_report import Act
from backprop_core.schema.records import Record
from flows.cli import lines_file
from flows.cli.console import configure_logging
from flows.cli.flags import PLAIN, Force, OutputFlags, Reason
from flows.cli.line import for_line
from flows.cli.main import Answer
from flows.cli.tables import size, whole_line
from tasks.runs import job_files, line_archives
from tasks.runs.line_archives import LineFile


class Transferred(Record):
    """A line that was written into a file, or read from one."""

    line: str
    path: str
    versions: list[int]
    champion: int | None
    artifacts: int
    pruned: int
    bytes: int
    job_file: str | None


def line_export(
    line: Annotated[str, Parameter(help="Name of the line.")],
    /,
    *,
    output_file: Annotated[
        Path | None, Parameter(name="--output", help="File to write; default: LINE.line here.", show_default=False)
    ] = None,
    force: Annotated[bool, Parameter(help="Overwrite the file.", negative="", show_default=False)] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    name = line_name(line)
    file, job = output_file or Path(f"{name}.line"), lines_file.place(name, config)
    if file.exists() and not force:
        raise ConfigInvalid(
            f"{file} exists already", hint="choose another file with --output, or overwrite with --force"
        )
    written = line_archives.write(name, job if job.is_file() else None, file, config)
    made = transferred(name, file, written.head, written.bytes, str(job) if job.is_file() else None)
    return Answer(made.model_dump(), whole_line(f"{summary(made)}\nread it elsewhere: backprop line import {file}"))


def line_import(
    file: Annotated[Path, Parameter(help="A file that `line export` has written.")],
    /,
    *,
    to: Annotated[
        str | None, Parameter(help="Name of the line here; default: the name that it had.", show_default=False)
    ] = None,
    force: Force = False,
    reason: Reason = "",
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    act = Act(by=local_user(), at=datetime.now(UTC), reason=reason.strip(), forced=force)
    if force and not act.reason:
        raise ConfigInvalid("--force needs a reason for the record", hint="add --reason TEXT")
    head = line_archives.head(file)
    name = line_name(to) if to else head.line
    check_no_job(name, config)
    text = line_archives.read(file, name, act, config)
    job = write_job(text, head.line, name, config) if text is not None else None
    made = transferred(name, file, head, file.stat().st_size, str(job) if job else None)
    return Answer(made.model_dump(), whole_line(f"{summary(made)}\nshow it: backprop show-line {name}"))


def check_no_job(line: str, config: Settings) -> None:
    """Raise ConfigInvalid if there is a job file of this name."""
    if job := next((path for path in lines_file.places(line, config) if path.is_file()), None):
        raise ConfigInvalid(f"{job} exists already", hint="choose another name with --to")


def write_job(text: str, line: str, to: str, config: Settings) -> Path:
    """Write the job file of a line that was read, under its name here."""
    path = lines_file.folders(config)[-1] / f"{to}.yaml"
    job_files.create(path, for_line(text, line, to) if line != to else text)
    return path


def transferred(name: str, file: Path, head: LineFile, count: int, job: str | None) -> Transferred:
    return Transferred(
        line=name,
        path=str(file.absolute()),
        versions=head.versions,
        champion=head.champion,
        artifacts=len(head.artifacts),
        pruned=len(head.pruned),
        bytes=count,
        job_file=job,
    )


def summary(made: Transferred) -> str:
    """What was moved, in a few lines."""
    live = f"version {made.champion} is live" if made.champion else "none is live"
    gone = f" ({made.pruned} others were pruned)" if made.pruned else ""
    job = made.job_file or "none"
    return (
        f"line {made.line}: {len(made.versions)} versions, {live}; {made.artifacts} artifacts{gone}\n"
        f"file      {made.path}  {size(made.bytes)}\njob file  {job}"
    )
