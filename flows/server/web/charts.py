"""Geometry of the score curves, and the shades of the heat map. Nothing of it needs inline styles."""

from collections.abc import Sequence
from typing import NamedTuple

from tasks.runs.line_report import LineReport

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 96, 14, 28  # margins
COLORS, SHADES = 6, 10  # classes c0 to c5 and h0 to h10 of the style sheet
MOST = 30  # versions of a chart
APART = 13  # pixels between two labels
TICKS = 4


class Curve(NamedTuple):
    """The scores of a task."""

    task: str
    color: int
    points: list[tuple[float, float]]
    label: float  # y of its name

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


class Chart(NamedTuple):
    """Curves with their axes."""

    curves: list[Curve]
    columns: list[tuple[float, str]]  # x, name of the version
    ticks: list[tuple[float, float]]  # y, score


def score_chart(report: LineReport) -> Chart | None:
    """The scores of each task over the base and the newest versions; None without scores."""
    versions = report.versions[:MOST][::-1]
    scores = [report.base_scores, *({task: one.score for task, one in each.scores.items()} for each in versions)]
    names = ["base", *(f"v{each.number}" for each in versions)]
    if not report.base_scores:
        scores, names = scores[1:], names[1:]
    every = [score for row in scores for score in row.values()]
    if not every:
        return None
    low, high = bounds(every)
    xs = spread(len(names))
    drawn = [
        (task, [(x, y_of(row[task], low, high)) for x, row in zip(xs, scores, strict=True) if task in row])
        for task in report.tasks
    ]
    labels = apart([points[-1][1] for _, points in drawn])
    curves = [
        Curve(task, index % COLORS, points, label)
        for index, ((task, points), label) in enumerate(zip(drawn, labels, strict=True))
    ]
    values = [low + (high - low) * step / TICKS for step in range(TICKS + 1)]
    step = 1 + len(names) // 10
    columns = [(x, name) for index, (x, name) in enumerate(zip(xs, names, strict=True)) if index % step == 0]
    return Chart(curves, columns, [(y_of(value, low, high), value) for value in values])


def bounds(scores: Sequence[float]) -> tuple[float, float]:
    """The axis: the scores with a little room, but not beyond 0 and 100 %. Negative scores are losses."""
    low, high = min(scores), max(scores)
    room = max((high - low) * 0.08, 0.005)
    return (max(0.0, low - room) if low >= 0 else low - room), (min(1.0, high + room) if high > 0 else high + room)


def spread(count: int) -> list[float]:
    """The x of each column."""
    width = WIDTH - LEFT - RIGHT
    return [LEFT + 12 + (width - 12) * index / max(1, count - 1) for index in range(count)]


def y_of(score: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low)


def apart(ys: Sequence[float]) -> list[float]:
    """The y of each label, near its curve and over no other label."""
    placed: dict[int, float] = {}
    lowest = -float(HEIGHT)
    for index in sorted(range(len(ys)), key=lambda index: ys[index]):
        lowest = max(ys[index], lowest + APART)
        placed[index] = lowest
    return [placed[index] for index in range(len(ys))]


def shade(score: float, scores: Sequence[float]) -> int:
    """The shade of a score among others, from 0 to SHADES."""
    low, high = min(scores), max(scores)
    return SHADES if high == low else round(SHADES * (score - low) / (high - low))
