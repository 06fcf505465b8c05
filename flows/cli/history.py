"""Verbs that show runs and lines."""

from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import Status
from flows.cli import run_text, tables
from flows.cli.console import configure_logging, one_line
from flows.cli.flags import PLAIN, Explain, OutputFlags, RunRef
from flows.cli.main import Answer
from tasks import tracking


def list_runs(
    *,
    children: Annotated[
        bool, Parameter(help="Also list the LoRA runs of each run.", negative="", show_default=False)
    ] = False,
    line: Annotated[str | None, Parameter(help="Only runs of this line.", show_default=False)] = None,
    status: Annotated[Status | None, Parameter(help="Only runs with this status.", show_default=False)] = None,
    since: Annotated[
        datetime | None, Parameter(help="Only runs that began on this day or later.", show_default=False)
    ] = None,
    limit: Annotated[PositiveInt, Parameter(help="Number of runs to list.")] = 50,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    condition = tracking.matching(children=children, line=line, status=status, since=since)
    summaries = tracking.list_runs(config, condition, limit)
    return Answer(summaries, tables.runs(summaries))


def show_run(run_id: RunRef, /, *, explain: Explain = False, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    result = tracking.show_run(config, run_id)
    shown = run_text.run(result)
    text = run_text.explained(shown, result.stages) if explain else shown
    return Answer(result.model_dump(mode="json"), text)


def lines(*, output: OutputFlags = PLAIN) -> Answer:
    from tasks.runs.line_state import summaries

    config = settings()
    configure_logging(config, verbose=output.verbose)
    found = summaries(config)
    return Answer(found, tables.lines(found))


def sync(*, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    report = tracking.sync(config, look=True)
    text = (
        f"{report.sent} journals sent, {report.waiting} waiting{f': {one_line(report.error)}' if report.error else ''}"
    )
    return Answer(report.model_dump(mode="json"), text, 3 if report.waiting or report.error else 0)
