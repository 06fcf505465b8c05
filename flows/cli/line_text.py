"""A line as text: its versions with scores and verdicts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from backprop_core.schema.score_text import level
from flows.cli.console import one_line
from flows.cli.tables import table

if TYPE_CHECKING:
    from tasks.runs.line_report import LineReport, VersionReport

OTHER = "*"  # marks a score on other held-out rows than those of the newest version


def versions(report: "LineReport") -> RenderableType:
    """A row per version, newest first, then why each could go live."""
    tasks = [f"({task})" if task in report.watch else task for task in report.tasks]
    figures = ("rows", "average", *tasks)
    made = table("version", "made", *figures, "run", right=figures)
    for version in report.versions:
        name = f"{version.number} live" if report.is_live(version) else str(version.number)
        scores = (score(version, task, report.metric) for task in report.tasks)
        made.add_row(
            name,
            f"{version.made.astimezone():%Y-%m-%d}",
            str(version.new_rows),
            level(version.average, report.metric) if version.average is not None else "",
            *scores,
            version.run_id[:12],
        )
    base = (level(report.base_scores.get(task), report.metric) for task in report.tasks)
    made.add_row("base", "", "", "", *base, "", style="dim")
    return Group(heading(report), "", made, "", *verdicts(report))


def heading(report: "LineReport") -> Text:
    """The line, its base, and what is live where."""
    text = Text.assemble("line ", (report.line, "bold"), f"  base {one_line(report.base)}")
    if report.live:
        places = f": {one_line(', '.join(report.live.places))}" if report.live.places else ""
        text.append(f"\nlive: version {report.live.number} since {report.live.since.astimezone():%Y-%m-%d}{places}")
    else:
        text.append("\nno version is live")
    text.append(f"\nscores in {report.metric.replace('_', ' ')}")
    if report.has_other_rows:
        text.append(f"; {OTHER} on other held-out rows than those of the newest version")
    return text


def score(version: "VersionReport", task: str, metric: str) -> str:
    found = version.scores.get(task)
    return "" if found is None else f"{level(found.score, metric)}{'' if found.comparable else OTHER}"


def verdicts(report: "LineReport") -> Iterator[RenderableType]:
    """Why each version could go live."""
    made = table("version", "verdict")
    for version in report.versions:
        made.add_row(str(version.number), one_line(version.verdict))
    yield made
