"""Verbs for a Prefect server: `deploy`, `serve`, `watch`."""

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.errors import ConfigInvalid, InputNotFound, PrefectUnreachable
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.runtime.settings import Settings, settings
from flows.cli import lines_file, tables
from flows.cli.config_layers import LineFile
from flows.cli.console import configure_logging, one_line
from flows.cli.flags import PLAIN, OutputFlags
from flows.cli.main import Answer, printed
from flows.cli.prefect_environment import connected, quiet_prefect
from tasks.runs.allowed_paths import forbidden

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from rich.table import Table

    from flows.server.deploy import Change
    from flows.server.serve import Addresses


def deploy(
    *,
    pool: Annotated[
        str | None, Parameter(help="Work pool of the deployments; created as a process pool if it does not exist.")
    ] = None,
    line: Annotated[str | None, Parameter(help="Deploy the job file of this line alone.", show_default=False)] = None,
    dry_run: Annotated[
        bool, Parameter(help="Show what would change, and change nothing.", negative="", show_default=False)
    ] = False,
    follow: Annotated[
        bool,
        Parameter(
            help="Go on until Ctrl-C: deploy job files as they are added, changed and removed, and watch for new data.",
            negative="",
            show_default=False,
        ),
    ] = False,
    output: OutputFlags = PLAIN,
) -> Answer | None:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    if follow and (line or dry_run):
        raise ConfigInvalid("--follow is for all lines, and changes the server", hint="leave out --line and --dry-run")
    jobs = {name: file.job for name, file in read(line, config).items()}
    quiet_prefect()
    check_named("backprop serve, which deploys by itself")
    with connected():
        from flows.server.deploy import deploy, deploy_line

        if follow:
            follow_files(config, pool or config.pool, as_json=output.json)
            return None
        if line:
            changes = deploy_line(config, jobs[line], pool=pool or config.pool, dry_run=dry_run)
        else:
            changes = deploy(config, jobs, pool=pool or config.pool, dry_run=dry_run)
    return Answer([change.model_dump() for change in changes], table(changes, dry_run=dry_run))


def follow_files(config: Settings, pool: str, *, as_json: bool) -> None:
    """Deploy and watch what the job files say, until Ctrl-C."""
    from flows.server.line_files import LineFiles
    from flows.server.watch import watching

    with suppress(KeyboardInterrupt), watching([]) as watches:
        lines = LineFiles(config, pool, watches)
        changes = lines.update()
        printed(Answer([change.model_dump() for change in changes], table(changes, dry_run=False)), as_json=as_json)
        lines.follow(threading.Event())


def read(line: str | None, config: Settings) -> dict[str, LineFile]:
    """The job file of a line, or all. Raises InputNotFound and what reading them raises."""
    if line is None:
        return lines_file.every(config)
    known = lines_file.find(line, config)
    if known is None:
        raise InputNotFound(f"line {line} has no job file", hint=f"write one: backprop init {line}")
    return {line: known}


def check_named(otherwise: str) -> None:
    """Raise PrefectUnreachable unless a Prefect server is named."""
    if not os.environ.get("PREFECT_API_URL"):
        raise PrefectUnreachable(
            "PREFECT_API_URL is not set", hint=f"set it to the address of a Prefect server, or run {otherwise}"
        )


def table(changes: Sequence["Change"], *, dry_run: bool) -> "Table":
    """What was changed, or would be."""
    made = tables.table("", "would be" if dry_run else "", "details")
    for change in changes:
        verdict = "created" if change.new else "changed" if change.details else "unchanged"
        made.add_row(change.what, verdict, one_line("; ".join(change.details)))
    return made


def serve(
    *,
    host: Annotated[str, Parameter(help="Address to listen on; any but this machine's loopback needs --auth.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        PositiveInt | None,
        Parameter(
            help="Port of the start page; Prefect and MLflow use the next two. Default: those used last, or free ones."
        ),
    ] = None,
    auth: Annotated[
        str | None, Parameter(help="User name; the password comes from the environment or a prompt.")
    ] = None,
    output: OutputFlags = PLAIN,
) -> None:
    from flows.server.serve import Service, alone, password, write

    config = settings()
    configure_logging(config, verbose=output.verbose)
    quiet_prefect()
    for name, file in lines_file.every(config).items():
        for path in forbidden(file.job):
            log.warning(
                "line %s reads %s, which is outside of BACKPROPAGATE_ALLOWED_PATHS: its runs will fail", name, path
            )
    credentials = password(auth, host, config)
    with (
        alone(config) as known,
        Service(config, host=host, port=port, auth=credentials, known=known) as service,
    ):
        write(config, service.addresses)
        with suppress(KeyboardInterrupt):
            service.start()
            printed(Answer(service.addresses.model_dump(), where(service.addresses)), as_json=output.json)
            while True:
                time.sleep(1)
                service.watch()


ui = serve


def watch(*, output: OutputFlags = PLAIN) -> None:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    jobs = [file.job for file in lines_file.every(config).values() if file.job.poll_seconds]
    if not jobs:
        raise ConfigInvalid("no job file sets poll_seconds", hint="add poll_seconds: 60 to lines/LINE.yaml")
    quiet_prefect()
    check_named("backprop serve, which watches by itself")
    with connected():
        from flows.server.watch import watching

        sources = {job.line: blank_secrets(job.datasets[0].path) for job in jobs}
        text = "\n".join([*(f"{line:12}{path}" for line, path in sources.items()), "Press Ctrl-C to stop."])
        with suppress(KeyboardInterrupt), watching(jobs):
            printed(Answer(sources, text), as_json=output.json)
            while True:
                time.sleep(1)


def where(addresses: "Addresses") -> str:
    """The addresses as text."""
    lines = {"start page": addresses.page, "Prefect": addresses.prefect, "MLflow": addresses.mlflow}
    return "\n".join([*(f"{name:12}{url}" for name, url in lines.items()), "Press Ctrl-C to stop everything."])
