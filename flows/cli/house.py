"""Verbs that look after the house."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group

from backprop_core.errors import BackpropError, all_errors
from backprop_core.settings import settings
from flows import tables
from flows.cli import Answer
from flows.cli.flags import PLAIN, OutputFlags
from flows.config import variable_of
from flows.console import one_line
from tasks.machine import facts
from tasks.store_check import check


def info(
    *,
    error_codes: Annotated[
        bool, Parameter(help="Every error code and what it means.", negative="", show_default=False)
    ] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    return codes() if error_codes else machine()


def codes() -> Answer:
    """Every error code, its exit status and what it means."""
    rows = [error_row(code, error) for code, error in all_errors().items()]
    table = tables.table("code", "exit", "passes by itself", "means")
    for row in rows:
        table.add_row(row["code"], str(row["exit_status"]), "yes" if row["retryable"] else "", row["means"])
    return Answer(rows, table)


def error_row(code: str, error: type[BackpropError]) -> dict[str, Any]:
    means = " ".join((error.__doc__ or "").split())
    return {"code": code, "exit_status": error.exit_status, "retryable": error.retryable, "means": means}


def machine() -> Answer:
    """Versions, devices, settings and places."""
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


def written(value: Any) -> str:
    """A fact as people read it."""
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "none" if value is None else str(value)


def store_check(*, output: OutputFlags = PLAIN) -> Answer:
    count, findings = check(settings())
    table = tables.table("artifact", "what is wrong")
    for finding in findings:
        table.add_row(finding.digest[:12], one_line(finding.what))
    summary = f"{count} artifacts, {len(findings)} damaged"
    text = Group(table, "", summary) if findings else summary
    document = {"artifacts": count, "findings": [finding.model_dump() for finding in findings]}
    return Answer(document, text, 2 if findings else 0)
