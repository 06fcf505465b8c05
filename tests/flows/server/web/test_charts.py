"""Curves and shades say what the scores are: nothing is drawn outside, upside down, or on top of another label."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from backprop_core.runtime.settings import settings
from flows.server.web import text
from flows.server.web.charts import (
    APART,
    HEIGHT,
    MOST_POINTS,
    SHADES,
    WIDTH,
    apart,
    bounds,
    loss_chart,
    score_chart,
    shade,
    sparkline,
)
from tasks.runs.line_report import line_report
from tests.flows.server.web.conftest import LineMaker


def test_higher_scores_are_higher(support: LineMaker) -> None:
    """Base, then each version from left to right; a better score is further up; all of it is inside."""
    chart = score_chart(line_report("support", settings()))
    assert chart and [name for _, name in chart.columns] == ["base", "v1", "v2"]
    routing = next(curve for curve in chart.curves if curve.task == "routing")
    (x0, y0), (x1, y1), (x2, y2) = routing.points
    assert x0 < x1 < x2 and HEIGHT > y0 > y1 > y2 > 0


@pytest.mark.parametrize("scores", [[0.5], [0.0, 1.0], [1.0, 1.0], [-3.2, -0.1], [0.98, 0.99]])
def test_the_axis_holds_all_scores(scores: list[float]) -> None:
    """Every score is on the axis, which has a length, and a share is never below 0 or above 100 %."""
    low, high = bounds(scores)
    assert low <= min(scores) <= max(scores) <= high and low < high
    assert min(scores) < 0 or (low >= 0 and high <= 1)


def test_labels_do_not_overlap() -> None:
    """Names of curves that end at one place are beside each other, in the order of the curves."""
    placed = apart([50.0, 50.0, 20.0, 51.0])
    assert placed[2] == 20.0 and sorted(placed) == sorted({*placed})
    ordered = sorted(placed)
    assert all(b - a >= APART for a, b in pairwise(ordered))


def test_shades() -> None:
    """The best score is darkest, the worst lightest; equal ones are alike."""
    assert [shade(score, [0.2, 0.6, 1.0]) for score in (0.2, 0.6, 1.0)] == [0, SHADES // 2, SHADES]
    assert shade(0.5, [0.5, 0.5]) == SHADES


def test_numbers_and_times_as_people_write_them() -> None:
    """Sizes in units, a near day by its name."""
    now = datetime(2026, 11, 30, 12, tzinfo=UTC).astimezone()
    assert text.size(4_400_000_000) == "4.4 GB"
    said = [text.when(now - timedelta(days=days), now).rpartition(" ")[0] for days in (0, 1, 3, 40)]
    assert (
        said == ["today", "yesterday", "Friday", "21 Oct 2026"] and text.when(now + timedelta(1), now)[:8] == "tomorrow"
    )
    assert text.left(now + timedelta(hours=23), now) == "23 h left" and text.left(now, now) == "less than a minute left"


def test_a_loss_that_falls_goes_down() -> None:
    """LoRA runs follow each other from left to right; a lower loss is further down; what is no number is left out."""
    first = [(step, 3 / step) for step in range(1, 1001)]
    chart = loss_chart([("1-night", first), ("2-day", [(1, float("nan")), (2, 1.0), (4, 0.5)]), ("3-none", [])])
    assert chart and [curve.task for curve in chart.curves] == ["1-night", "2-day"]
    night, day = chart.curves
    assert len(night.points) <= MOST_POINTS and night.points[-1][0] < day.points[0][0] < WIDTH
    for curve in chart.curves:
        heights = [y for _, y in curve.points]
        assert heights == sorted(heights) and 0 < heights[0] < heights[-1] < HEIGHT
    assert (chart.columns[0][1], chart.columns[-1][1]) == ("0", "1004")
    assert min(value for _, value in chart.ticks) == 0
    assert loss_chart([("1-night", [(1, float("inf"))])]) is None


def test_the_loss_on_held_out_rows_is_over_the_same_steps() -> None:
    """Its curve begins and ends where that of the training does, under a name of its own; runs without it have one."""
    trained = [("1-night", [(1, 3.0), (4, 1.0)]), ("2-day", [(1, 2.0), (6, 0.5)])]
    chart = loss_chart(trained, {"2-day": [(1, 2.5), (6, 2.2)]})
    assert chart and [curve.task for curve in chart.curves] == ["1-night", "2-day", "held-out 2-day"]
    _, day, heldout = chart.curves
    assert [x for x, _ in heldout.points] == [x for x, _ in day.points]
    assert heldout.points[0][1] < day.points[0][1] and heldout.points[1][1] < day.points[1][1]
    assert loss_chart(trained) == loss_chart(trained, {"1-night": [(2, float("nan"))]})


@pytest.mark.parametrize(("losses", "points"), [([], 0), ([1.0], 0), ([1.0, 1.0], 2), ([3.0, float("nan"), 1.0], 2)])
def test_a_small_curve_needs_two_numbers(losses: list[float], points: int) -> None:
    """Fewer are no curve."""
    assert len(sparkline(losses).split()) == points


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9, "9.0 s"), (42, "42 s"), (90, "2 min"), (5400, "1.5 h")]
)
def test_durations(seconds: float, said: str) -> None:
    """In the unit that fits."""
    assert text.duration(seconds) == said
