"""Verbs that show runs and lines."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.runtime.printable_text import printable
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import line_name
from flows.cli import line_text, run_text, tables
from flows.cli.console import configure_logging, one_line, say
from flows.cli.flags import EVERY, PLAIN, Explain, OutputFlags, RunRef, WhichRuns
from flows.cli.main import Answer
from tasks import tracking
from tasks.runs import run_log
from tasks.tracking import SyncReport
from tasks.tracking.trackers import process as trackers
from tasks.tracking.trackers.forwarding import Forwarded


def list_runs(
    *,
    which: WhichRuns = EVERY,
    sort: Annotated[
        tracking.Sort, Parameter(help="Newest, longest, or best first; or by name of line or status.")
    ] = "started",
    limit: Annotated[PositiveInt, Parameter(help="Number of runs to list.")] = 50,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    summaries = tracking.list_runs(config, which.filter(), limit, sort)
    return Answer(summaries, tables.runs(summaries))


def show_run(
    run_id: RunRef,
    /,
    *,
    follow: Annotated[
        bool,
        Parameter(help="Print the log of a running run until it ends, then show it.", negative="", show_default=False),
    ] = False,
    explain: Explain = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    if follow:
        for line in run_log.followed(run_id, config):
            say(log_line(line))
    result = tracking.show_run(config, run_id)
    shown = run_text.run(result)
    text = run_text.explained(shown, result.stages) if explain else shown
    return Answer(result.model_dump(mode="json"), text)


def logs(run_id: RunRef, /, *, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    kept = run_log.lines_of(run_id, config)
    document = [line.model_dump(mode="json") for line in kept]
    return Answer(document, "\n".join(map(log_line, kept)) or "The log is empty.")


def log_line(line: run_log.LogLine) -> str:
    """A line of a log as text."""
    return f"{line.time.astimezone():%Y-%m-%d %H:%M:%S} {line.level:<8} {printable(line.message)}"


def lines(*, output: OutputFlags = PLAIN) -> Answer:
    from tasks.runs.line_state import summaries

    config = settings()
    configure_logging(config, verbose=output.verbose)
    found = summaries(config)
    return Answer(found, tables.lines(found))


def show_line(line: Annotated[str, Parameter(help="Name of the line.")], /, *, output: OutputFlags = PLAIN) -> Answer:
    from tasks.runs.line_report import line_report
    from tasks.runs.restored_lines import look_for_line

    config = settings()
    configure_logging(config, verbose=output.verbose)
    look_for_line(line_name(line), config)
    report = line_report(line, config)
    return Answer(report.model_dump(mode="json"), line_text.versions(report))


def sync(*, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    report = tracking.sync(config, look=True)
    others = trackers.sync(config)
    text = "\n".join([sent_text("", report), *(sent_text(each.tracker, each) for each in others)])
    document = trackers.Synced(**report.model_dump(), trackers=others).model_dump(mode="json")
    is_left = report.waiting or report.error or any(each.waiting or each.error for each in others)
    return Answer(document, text, 3 if is_left else 0)


def sent_text(tracker: str, report: SyncReport | Forwarded) -> str:
    """`2 journals sent, 0 waiting`, behind the name of a tracker other than MLflow."""
    error = f": {one_line(report.error)}" if report.error else ""
    name = f"{tracker}: " if tracker else ""
    return f"{name}{report.sent} journals sent, {report.waiting} waiting{error}"
