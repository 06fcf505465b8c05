"""Limits on the figures of a dataset report, such as `duplicates>5%`."""

import re
from typing import Literal, NamedTuple

from backprop_core.data.report import FIGURES, DatasetReport
from backprop_core.errors import ConfigInvalid

LIMIT = re.compile(r"\s*(\w+)\s*>\s*(\d+(?:\.\d+)?)\s*(%?)\s*")
HINT = f"write NAME>COUNT or NAME>SHARE%, like duplicates>5%. Names: {', '.join(FIGURES)}"


class Limit(NamedTuple):
    """The most rows that a figure may count, or the largest share of the rows read, in percent."""

    figure: str
    most: float
    unit: Literal["rows", "%"]


def limit(text: str) -> Limit:
    """A limit as it is written. Raises ConfigInvalid."""
    match = LIMIT.fullmatch(text)
    if match is None:
        raise ConfigInvalid(f"--fail-on {text} is not a limit", hint=HINT)
    if match[1] not in FIGURES:
        raise ConfigInvalid(f"--fail-on {text}: no figure is called {match[1]}", hint=HINT)
    return Limit(match[1], float(match[2]), "%" if match[3] else "rows")


def exceeded(report: DatasetReport, limits: list[Limit]) -> list[str]:
    """Each limit that a dataset is over, in words. Raises ConfigInvalid for a figure that the report lacks."""
    return [words for one in limits if (words := over(report, one)) is not None]


def over(report: DatasetReport, limit: Limit) -> str | None:
    """What is over a limit, or None."""
    rows = report.figures.get(limit.figure)
    if rows is None:
        raise ConfigInvalid(
            f"--fail-on {limit.figure}: {report.data} was examined without a base model", hint="name one with --model"
        )
    share = 100 * rows / report.read
    if (share if limit.unit == "%" else rows) <= limit.most:
        return None
    most = f"{limit.most:g} %" if limit.unit == "%" else f"{limit.most:g}"
    return f"{report.data}: {limit.figure} is {rows} of {report.read} rows ({share:.3g} %), over {most}"
