"""Verbs for a Prefect server."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from backprop_core.errors import PrefectUnreachable
from backprop_core.settings import settings
from flows import lines_file, tables
from flows.cli import Answer
from flows.cli.flags import PLAIN, OutputFlags
from flows.console import configure_logging, one_line
from flows.environment import connected, quiet_prefect

if TYPE_CHECKING:
    from rich.table import Table

    from flows.deploy import Change


def deploy(
    *,
    pool: Annotated[str | None, Parameter(help="Work pool; a process pool is made if there is none.")] = None,
    dry_run: Annotated[
        bool, Parameter(help="Say what would be changed; change nothing.", negative="", show_default=False)
    ] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    jobs = {name: file.job for name, file in lines_file.every(config).items()}
    quiet_prefect()
    if "PREFECT_API_URL" not in os.environ:
        raise PrefectUnreachable(
            "no Prefect server is named", hint="set PREFECT_API_URL, or start one: backprop serve deploys by itself"
        )
    with connected():
        from flows.deploy import deploy

        changes = deploy(config, jobs, pool=pool or config.pool, dry_run=dry_run)
    return Answer([change.model_dump() for change in changes], table(changes, dry_run=dry_run))


def table(changes: Sequence["Change"], *, dry_run: bool) -> "Table":
    """What was, or would be, done to what."""
    made = tables.table("", "would be" if dry_run else "", "how")
    for change in changes:
        verdict = "made" if change.new else "changed" if change.details else "as it was"
        made.add_row(change.what, verdict, one_line("; ".join(change.details)))
    return made
