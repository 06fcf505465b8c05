"""A comparison of settings as a table."""

from rich.console import Group, RenderableType
from rich.text import Text

from backprop_core.schema.refs import BenchReport, BenchRow
from backprop_core.schema.score_text import amount, bare, gain, level
from flows.cli.console import one_line
from flows.cli.tables import duration, table
from tasks.runs.bench_figures import points

FIGURES = ("average", "±", "transfer", "worst task", "over present", "train", "cells")


def comparison(report: BenchReport) -> RenderableType:
    """One line a setting, the present one first."""
    made = table("setting", *FIGURES, right=FIGURES)
    for place, row in enumerate(report.rows):
        made.add_row(*line(row, report.metric, present=place == 0))
    many = len(report.orders)
    caption = f"{report.metric}; {many} {'order' if many == 1 else 'orders'} of {', '.join(report.orders[0])}"
    return Group(made, Text(one_line(caption)))


def line(row: BenchRow, metric: str, *, present: bool) -> list[str]:
    """The cells of one line."""
    over = row.over_present
    return [
        f"{row.name} (present)" if present else row.name,
        level(row.average, metric),
        "" if row.std is None else bare(amount(row.std, metric)),
        "" if row.backward_transfer is None else bare(gain(row.backward_transfer, metric)),
        level(row.worst, metric),
        points(over, metric) if over else "",
        duration(row.seconds),
        str(row.cells) if row.setting else "",
    ]
