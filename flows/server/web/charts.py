"""Geometry of curves, and the shades of the heat map. Nothing of it needs inline styles."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tasks.runs.line_report import LineReport

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 96, 14, 28  # margins
COLORS, SHADES = 6, 10  # classes c0 to c5 and h0 to h10 of the style sheet
MOST = 30  # versions of a chart
APART = 13  # pixels between two labels
TICKS = 4
MOST_POINTS = 200  # of a curve
SPARK = 120, 22
Points = Sequence[tuple[int, float]]
NONE: Mapping[str, Points] = MappingProxyType({})


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


def loss_chart(curves: Sequence[tuple[str, Points]], heldout: Mapping[str, Points] = NONE) -> Chart | None:
    """The training loss of LoRA runs, by name, one after the other; None without a number.

    `heldout`: the loss of a run on held-out rows, by the run's name, drawn over the same steps.
    """
    finite = drawable(curves)
    if not finite:
        return None
    last = [points[-1][0] for _, points in finite]
    begins = dict(zip([name for name, _ in finite], [sum(last[:index]) for index in range(len(last))], strict=True))
    besides = drawable([(name, heldout[name]) for name in begins if name in heldout])
    lines = [(name, begins[name], points) for name, points in finite]
    lines += [(f"held-out {name}", begins[name], points) for name, points in besides]
    losses = [loss for _, _, points in lines for _, loss in points]
    low, high = bounds([-loss for loss in losses])
    high = min(high, 0.0) if min(losses) >= 0 else high  # no axis below a loss of 0
    steps = max(1, sum(last))
    drawn = [
        [(x_of(begin + step, steps), y_of(loss, -high, -low)) for step, loss in points] for _, begin, points in lines
    ]
    labels = apart([points[-1][1] for points in drawn])
    named = zip(lines, drawn, labels, strict=True)
    shown = [Curve(name, index % COLORS, points, label) for index, ((name, *_), points, label) in enumerate(named)]
    values = [-high + (high - low) * step / TICKS for step in range(TICKS + 1)]
    columns = [(x_of(step, steps), str(step)) for step in sorted({round(steps * part / 5) for part in range(6)})]
    return Chart(shown, columns, [(y_of(value, -high, -low), value) for value in values])


def drawable(curves: Sequence[tuple[str, Points]]) -> list[tuple[str, Points]]:
    """The curves that have a finite number, with these alone."""
    numbers = [(name, [point for point in points if math.isfinite(point[1])]) for name, points in curves]
    return [(name, thinned(points)) for name, points in numbers if points]


def thinned(points: Points) -> Points:
    """At most MOST_POINTS of them, the last one among them."""
    every = -(-len(points) // MOST_POINTS)
    return points[(len(points) - 1) % every :: every]


def x_of(step: int, steps: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / steps


def sparkline(values: Sequence[float]) -> str:
    """The points of a small curve, SPARK wide and high; empty for less than two numbers."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    (width, height), room = SPARK, (high - low) or 1.0
    xs = [width * index / (len(finite) - 1) for index in range(len(finite))]
    return " ".join(f"{x:.1f},{1 + (height - 2) * (high - y) / room:.1f}" for x, y in zip(xs, finite, strict=True))


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
