"""What MLflow's pages of a line say: its experiment, its registered model, and each version, in Markdown."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from backprop_core.publishing.model_card import plain, table
from backprop_core.schema.refs import RunId
from backprop_core.schema.score_text import level
from tasks.runs.line_report import LineReport, LiveReport, VersionReport

LONGEST = 5000  # characters of a description in MLflow
LONGEST_VERDICT = 200


class Links(NamedTuple):
    """Where MLflow has what a description links to."""

    model: str  # name of the registered model
    curve: str  # link to the curve of the line
    versions: Mapping[int, str]  # our number -> MLflow's
    runs: Mapping[RunId, str]  # link to the run


def line_text(report: LineReport, links: Links) -> str:
    """What is live, where the curve is, and a table of the versions, the newest first, as many as fit."""
    head = f"{live_text(report.live)}\n\n[Scores by version]({links.curve})\n"
    last = f"\n\nAverages are {report.metric} on held-out rows. In a terminal: `backprop lines`"
    rows = [version_row(report, version, links) for version in report.versions]
    most = sum(length <= LONGEST for length in accumulate(sum(map(len, row)) for row in rows))  # no more can fit
    texts = (head + versions_table(rows, count) + last for count in range(most, -1, -1))
    return next(text for text in texts if len(text) <= LONGEST)


def live_text(live: LiveReport | None) -> str:
    """Which version is live, since when and why."""
    if live is None:
        return "**No version is live.**"
    return f"**Version {live.number} is live** {since(live)}: {verdict(live.verdict)}.{places(live)}"


def since(live: LiveReport) -> str:
    return f"since {live.since:%Y-%m-%d %H:%M} UTC"


def places(live: LiveReport) -> str:
    """Where it is published, as a sentence; empty if it is nowhere."""
    return f" It answers at {plain(', '.join(live.places))}." if live.places else ""


def versions_table(rows: list[list[str]], count: int) -> str:
    """The table of the first `count` versions; the cells are Markdown."""
    head = ["version", "average", "made", "new rows", "verdict", ""]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows[:count])]
    more = [f"\n{len(rows) - count} older versions are not in this table."] if count < len(rows) else []
    return "\n".join(["", *lines, *more])


def version_row(report: LineReport, version: VersionReport, links: Links) -> list[str]:
    number = links.versions.get(version.number)
    name = f"[v{version.number}](#/models/{links.model}/versions/{number})" if number else f"v{version.number}"
    return [
        name,
        level(version.average, report.metric),
        f"{version.made:%Y-%m-%d}",
        str(version.new_rows),
        verdict(version.verdict),
        "**live**" if report.is_live(version) else "",
    ]


def verdict(text: str) -> str:
    """A verdict, cut: a person may have written much."""
    return plain(text if len(text) <= LONGEST_VERDICT else f"{text[:LONGEST_VERDICT]}…")


def version_text(report: LineReport, version: VersionReport, links: Links) -> str:
    """A version: verdict first, then its scores, its files, and where it comes from."""
    return "\n\n".join(parts_of(report, version, links))[:LONGEST]


def parts_of(report: LineReport, version: VersionReport, links: Links) -> Iterator[str]:
    name = f"**{plain(report.line)} v{version.number}, average {level(version.average, report.metric)}**"
    yield f"{name}: {verdict(version.verdict)}."
    if report.live and report.is_live(version):
        yield f"**It is live** {since(report.live)}.{places(report.live)}"
    scores = [[task, level(one.score, report.metric), str(one.rows)] for task, one in version.scores.items()]
    yield "\n".join(table(["task", report.metric, "held-out rows"], scores))
    files = [[one.name, f"{one.bytes / 2**20:.1f}", one.sha256[:12]] for one in version.files]
    if files:
        yield "\n".join(table(["file", "MiB", "sha256"], files))
    if link := links.runs.get(version.run_id):
        yield f"[The run that made it]({link})"
    yield f"In a terminal: `backprop export {report.line}@{version.number}`"
