"""What a comparison says of its results: averages by hand, and a sentence that says what to set."""

import io
from typing import Any

import pytest
import yaml
from rich.console import Console

from backprop_core.schema.refs import BenchReport, BenchResult, BenchSetting
from backprop_core.schema.score_text import WITHOUT_LIMIT
from backprop_core.schema.specs import RunSpec, method_of
from flows.cli import bench_text
from tasks.runs.bench_figures import NOTHING, ONE_CELL, average, replay_of, report, settings, transfer
from tasks.runs.prefect_artifacts import comparison
from tasks.runs.resolve_line import with_memory

PRESENT = BenchSetting(strategy="slao", replay=0, rate=1e-3)
BETTER = BenchSetting(strategy="slao+a", replay=50, rate=1e-3)


def result(
    setting: BenchSetting, last: list[float], seed: int = 0, *, order: int | None = 0, seconds: float = 10
) -> BenchResult:
    then = [0.9] * len(last)
    tasks = ["a", "b", "c"][: len(last)]
    return BenchResult(setting=setting, order=order, seed=seed, tasks=tasks, then=then, last=last, seconds=seconds)


def compared(results: list[BenchResult]) -> BenchReport:
    return report("exact_match", [["a", "b"]], PRESENT, {"a": 0.1, "b": 0.3}, results)


def test_a_task_that_comes_twice_counts_once() -> None:
    """The average is over tasks; a task is compared with the last run that trained it."""
    made = BenchResult(
        setting=PRESENT, order=0, seed=0, tasks=["a", "b", "a"], then=[0.2, 0.8, 0.7], last=[0.6, 0.5, 0.6], seconds=1
    )
    assert average(made) == pytest.approx(0.55)  # of 0.6 and 0.5
    assert transfer(made) == pytest.approx(-0.3)  # of b; the last run is of a
    assert transfer(made.model_copy(update={"order": None})) is None


def test_the_best_that_beats_noise_is_advised_with_its_cost() -> None:
    """The sentence has the fields that differ, the gain with its interval, and the time."""
    cells = [
        result(setting, [score + seed / 100, score + gain / 100], seed, seconds=seconds)
        for setting, score, seconds in ((PRESENT, 0.5, 10), (BETTER, 0.55, 12))
        for seed, gain in ((0, 0), (1, 1), (2, 2))
    ]
    made = compared([*cells, result(PRESENT, [0.8, 0.9], order=None)])
    assert [row.name for row in made.rows] == [
        "slao, no replay, rate 0.001",
        "slao+a, replay 50 rows, rate 0.001",
        "all at once",
        "base",
    ]
    present, better, bound, base = made.rows
    assert (present.average, present.worst, present.over_present) == (pytest.approx(0.51), pytest.approx(0.51), None)
    assert better.over_present and better.over_present.mean == pytest.approx(0.05) and better.over_present.won == 3
    assert (bound.average, bound.backward_transfer, base.average) == (pytest.approx(0.85), None, pytest.approx(0.2))
    assert made.advice == (
        "Set merge.merge_a=true and training.replay_rows=50: +5.0 points (5.0 to 5.0), 20% more training time."
    )


def test_noise_is_no_advice() -> None:
    """A higher average with an interval that holds 0 is not advised, and one cell never is."""
    noisy = [
        result(setting, [score, score], seed)
        for setting, scores in ((PRESENT, [0.5, 0.6, 0.4]), (BETTER, [0.8, 0.5, 0.5]))
        for seed, score in enumerate(scores)
    ]
    assert compared(noisy).advice == NOTHING
    assert compared(noisy[::3]).advice == ONE_CELL


def test_the_best_of_many_has_to_gain_more() -> None:
    """What beats noise alone does not as one of eight settings: the best of many is above 0 by chance."""
    scores = {0: 0.50, 1: 0.53, 2: 0.52}
    gain = {0: 0.03, 1: 0.05, 2: 0.04}
    alone = [
        result(setting, [score + (gain[seed] if setting == BETTER else 0)] * 2, seed)
        for setting in (PRESENT, BETTER)
        for seed, score in scores.items()
    ]
    others = [
        result(PRESENT.model_copy(update={"rate": rate / 1000}), [score] * 2, seed)
        for rate in range(2, 8)
        for seed, score in scores.items()
    ]
    assert compared(alone).advice.startswith("Set ") and compared([*alone, *others]).advice == NOTHING


@pytest.mark.parametrize(
    ("present", "wanted", "fields"),
    [
        ({"replay": 0.05}, {"replay": 0}, "training.replay=0"),
        ({"replay": 50}, {"replay": 0}, "training.replay_rows=0"),
        ({"replay": 0.05}, {"replay": 20}, "training.replay_rows=20 and training.replay=0"),
        ({"strategy": "slao+a@1/i"}, {"strategy": "average"}, "merge.strategy=average and merge.merge_a=false and "),
        ({"rate": 1e-3}, {"rate": 5e-4}, "training.learning_rate=0.0005"),
        # a spec that names a field of merge chooses neither merge_a nor replay
        (
            {"strategy": "slao+a", "replay": 50},
            {"strategy": "average", "replay": 50},
            "merge.strategy=average and merge.merge_a=false and training.replay_rows=50",
        ),
        (
            {"strategy": "slao+a", "replay": 50},
            {"strategy": "slao+a@1/i", "replay": 50},
            "merge.merge_a=true and merge.lambda=1/i and training.replay_rows=50",
        ),
    ],
)
def test_fields_to_set(present: dict[str, float], wanted: dict[str, float], fields: str) -> None:
    """What is advised, set over the present settings, gives the better ones."""
    old, new = (BenchSetting.model_validate({**PRESENT.model_dump(), **change}) for change in (present, wanted))
    results = [result(setting, [score] * 2, seed) for setting, score in ((old, 0.5), (new, 0.6)) for seed in (0, 1)]
    made = report("exact_match", [["a", "b"]], old, {"a": 0.1}, results)
    assert f"Set {fields}" in made.advice


@pytest.mark.parametrize(
    "wanted", [BenchSetting(strategy="average", replay=50, rate=1e-3), BETTER, BETTER.model_copy(update={"replay": 0})]
)
@pytest.mark.parametrize("strategy", ["slao", "slao+a", "slao+a@1/i"])
def test_what_is_advised_makes_a_new_line_that_does_it(wanted: BenchSetting, strategy: str) -> None:
    """A new line with the advised fields merges and replays as the setting that was measured."""
    present = BenchSetting(strategy=strategy, replay=50, rate=1e-3)
    tree: dict[str, dict[str, Any]] = {"merge": {}, "training": {}}
    for text in settings(wanted, present):
        name, _, value = text.partition("=")
        part, _, field = name.partition(".")
        tree[part][field] = yaml.safe_load(value)
    made, _ = with_memory(RunSpec.model_validate({"datasets": [{"path": "a.jsonl"}], **tree}), None)
    if tree["merge"] or strategy == "slao+a":  # else it is asked for as before, with the present merge
        assert (method_of(made.merge), made.training.replay_rows) == (wanted.strategy, wanted.replay)


@pytest.mark.parametrize(
    ("share", "called"), [(0.05, "replay 5%"), (0.07, "replay 7%"), (0.005, "replay 0.5%"), (0.012, "replay 1.2%")]
)
def test_each_share_has_its_own_name(share: float, called: str) -> None:
    """Two shares that differ are two rows of the table with two names."""
    assert replay_of(PRESENT.model_copy(update={"replay": share})) == called


@pytest.mark.parametrize("metric", WITHOUT_LIMIT)
def test_a_loss_has_no_percent(metric: str) -> None:
    """In the metrics loss and bits per byte, which are negated, a difference is in nats or bits."""
    results = [
        result(setting, [score] * 2, seed) for setting, score in ((PRESENT, -1.5), (BETTER, -1.25)) for seed in (0, 1)
    ]
    made = report(metric, [["a", "b"]], PRESENT, {"a": -2}, results)
    assert "+0.250 (0.250 to 0.250)" in made.advice and "points" not in made.advice


@pytest.mark.parametrize(
    ("metric", "average"), [("exact_match", "55.0 %"), ("loss", "0.450"), ("bits_per_byte", "0.450")]
)
def test_both_tables_have_levels_and_changes_as_people_read_them(metric: str, average: str) -> None:
    """Shares in percent beside differences in points, losses as they are: in the terminal and in Prefect."""
    sign = -1 if metric in WITHOUT_LIMIT else 0
    results = [
        result(setting, [sign + score] * 2, seed)
        for setting, score in ((PRESENT, 0.5), (BETTER, 0.55))
        for seed in (0, 1)
    ]
    made = report(metric, [["a", "b"]], PRESENT, {"a": sign + 0.1}, results)
    file = io.StringIO()
    Console(file=file, width=200).print(bench_text.comparison(made))
    for text in (file.getvalue(), comparison(made)):
        [row] = [line for line in text.splitlines() if "replay 50 rows" in line]
        assert average in row and ("points" in row) == (metric not in WITHOUT_LIMIT) and "0.55" not in row
