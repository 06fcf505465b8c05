"""The benchmark of unattended nights: what a night is, and that a stopped one goes on."""

import json
from pathlib import Path

import pytest

from backprop_core.store.artifacts import Store
from benchmarks import nights
from benchmarks.nights import Bench, Night, State, is_shuffled, learned, suite, table, wrong
from tests.backprop_core import nano


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nights") / "base"
    nano.build(place)
    return place


def rows(count: int, seed: int) -> list[str]:
    return [json.dumps(row) for row in nano.chats(count, seed=seed)]


def go(base: Path, place: Path, *stops: int | None) -> list[object]:
    """The nights of an arm, stopped after some of them and begun again."""
    for most in stops:
        store = Store(place / "store")
        made = suite({"a": rows(24, 1)}, {"a": rows(60, 2)}, nights=3, gated=40, store=store)
        Bench(store, base, place / "nights.json").run("tiny", made, "not worse, back-off", most)
    known: list[object] = json.loads((place / "nights.json").read_text())["tiny"]["not worse, back-off"]
    return known


def test_stopped_nights_go_on(base: Path, tmp_path: Path) -> None:
    """Begun again after the second night, the third gives the same figures as in one go; again, nothing changes."""
    once, again = go(base, tmp_path / "once", None), go(base, tmp_path / "again", 2, None, None)
    assert once == again and len(once) == 3
    first, *later = (Night.model_validate(night) for night in once)
    assert first.taken is None and first.accepted == ("better" in first.reason and "not above" not in first.reason)
    assert all((night.taken is not None) == first.accepted for night in later[:1])


def test_a_shuffled_night_has_the_answers_of_other_rows() -> None:
    """The same questions and the same answers, but not together."""
    right = rows(30, 3)
    made = [json.loads(row)["messages"] for row in wrong(right, 0)]
    before = [json.loads(row)["messages"] for row in right]
    assert [chat[:-1] for chat in made] == [chat[:-1] for chat in before]
    answers = [[chat[-1]["content"] for chat in chats] for chats in (made, before)]
    assert answers[0] != answers[1] and sorted(answers[0]) == sorted(answers[1])
    assert [number for number in range(30) if is_shuffled(number)] == [6, 13, 20, 27]


def test_only_released_nights_are_replayed(tmp_path: Path) -> None:
    """The rows of the nights that the champion has learned, those of a task together."""
    data, held = {"a": rows(24, 1), "b": rows(24, 2)}, {"a": rows(20, 3), "b": rows(20, 4)}
    made = suite(data, held, nights=6, gated=10, store=Store(tmp_path))
    figures = {"shuffled": False, "taken": None, "reason": "", "gated": 0.5, "kept": 0.5}
    released = (True, True, False, True, True)
    done = [Night(task="a", accepted=accepted, **figures) for accepted in released]  # type: ignore[arg-type]
    (_, a), (_, b), _, (_, second_b), (_, third_a), _ = made.nights
    assert learned(made, State(nights=tuple(done))) == [[a, third_a], [b, second_b]]


def test_the_table_has_the_largest_fall_of_the_champion() -> None:
    """From one night to the next and from its best, on the rows that no gate sees."""
    made = [
        Night(task="a", shuffled=shuffled, accepted=True, taken=taken, reason="", gated=0.5, kept=kept).model_dump()
        for kept, taken, shuffled in ((0.5, None, False), (0.7, 0.5, False), (0.66, 1.0, True), (0.64, 1.0, False))
    ]
    assert table({"one-task": {"better": made}}).splitlines()[-1] == (
        "| 4, one-task | better | 4 (1 in part) | 1 of 1 | 50.0 → 64.0 | -4.0 | -6.0 |"
    )
    assert list(nights.SUITES) == ["one-task", "three-tasks"]
