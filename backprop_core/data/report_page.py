"""Writes dataset reports as HTML pages that need no script and load nothing."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from backprop_core.data.report import DatasetReport, Lengths
from backprop_core.runtime.printable_text import printable
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.schema.dataset_reports import CuratedReport

WIDTH, HEIGHT = 640, 120  # of a histogram, in units of its own
GAP = 2
LABELS = {  # of the counts of a run's dataset
    "read": "rows read",
    "usable": "usable",
    "train": "trained",
    "heldout": "held out",
    "quarantined": "in quarantine",
    "preferences": "preferences, kept apart",
}
LONGEST = 6000  # characters of a part of a row; of a longer one the middle is left out


class Bar(NamedTuple):
    """One bar of a histogram: its place in the picture, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    title: str


def page(reports: Sequence[DatasetReport]) -> str:
    """The page. Whatever rows contain is text in it: escaped, without control characters, secrets blanked."""
    return environment().get_template("report_page.html").render(reports=reports) + "\n"


def curated_page(reports: Sequence[CuratedReport]) -> str:
    """The page of a run's datasets, made as safely."""
    return environment().get_template("curated_page.html").render(reports=reports) + "\n"


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalized,
    )
    made.filters |= {"bars": bars, "count": count, "share": share, "words": words, "shortened": shortened}
    made.globals |= {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LABELS": LABELS}
    return made


def finalized(value: object) -> object:
    """What the template writes of a value."""
    return printable(blank_secrets(value)) if type(value) is str else value


def bars(lengths: Lengths, unit: str) -> list[Bar]:
    """The bars of a histogram."""
    most = max((one.rows for one in lengths.histogram), default=1)
    step = WIDTH / max(1, len(lengths.histogram))
    return [
        Bar(
            x=round(number * step + GAP / 2, 1),
            y=round(HEIGHT - (height := one.rows / most * HEIGHT), 1),
            width=round(step - GAP, 1),
            height=round(height, 1),
            title=f"{one.start:,} to {one.end - 1:,} {unit}: {one.rows:,} rows",
        )
        for number, one in enumerate(lengths.histogram)
    ]


def count(value: float) -> str:
    """`12,345`"""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """`4.2 %`; more exact below one percent."""
    percent = 100 * part / whole if whole else 0.0
    digits = f"{percent:.1f}" if percent >= 1 else f"{percent:.2g}"
    return f"{digits} %"


def words(name: str) -> str:
    """A figure's or a reason's name as words."""
    return name.replace("_", " ")


def shortened(text: str) -> str:
    """A long text without its middle."""
    if len(text) <= LONGEST:
        return text
    part = LONGEST // 2
    return f"{text[:part]} [… {len(text) - 2 * part:,} characters …] {text[-part:]}"
