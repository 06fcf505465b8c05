"""Replay by rows of each earlier task; by a share of each dataset: test_curation."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backprop_core.data.general_rows import own_answers
from backprop_core.data.row_files import passes as passes_of
from backprop_core.data.row_sets import answers, replay, replay_by_task
from backprop_core.schema.general_prompts import PROMPTS
from backprop_core.schema.refs import Answers, Generated, RowsRef
from backprop_core.schema.specs import TrainSpec
from backprop_core.store.cache_keys import stage_key
from tests.backprop_core import nano
from tests.backprop_core.data.test_curation import Bench, numbered

Tasks = list[list[RowsRef]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def texts(bench: Bench, refs: list[RowsRef]) -> set[str]:
    return {json.dumps(row) for ref in refs for row in bench.rows(ref)}


def drawn(bench: Bench, new: RowsRef, tasks: Tasks, least: int, **more: Any) -> list[list[set[str]]]:
    """Of each task, the rows of each epoch."""
    asked = {"heldout": [], "share": 0, "passes": 1, "seed": 0, **more}
    mixed = replay_by_task(new, tasks, least=least, store=bench.store, **asked)
    rows, fresh = list(map(json.dumps, bench.rows(mixed))), texts(bench, [new])
    assert len(rows) == len(set(rows)) and fresh <= set(rows)
    some = [number for number, row in enumerate(rows) if row not in fresh]
    epochs = passes_of(bench.store.local(mixed)) if asked["passes"] > 1 else [some]
    assert sorted(set().union(*epochs)) == some
    return [[{rows[number] for number in epoch} & texts(bench, task) for epoch in epochs] for task in tasks]


def test_each_task_gives_as_many_rows_however_many_datasets_it_has(bench: Bench) -> None:
    """Thirty nights of one task are one task: with another one that came once, either gives the same number."""
    new, other = bench.read(numbered(40)).rows, bench.read(numbered(60, 5000)).rows
    nights = [bench.read(numbered(8, 100 + 8 * night)).rows for night in range(30)]
    parts = drawn(bench, new, [nights, [other]], 20, passes=3)
    assert [[len(epoch) for epoch in part] for part in parts] == [[20, 20, 20]] * 2
    few = bench.read(numbered(5, 9000)).rows
    assert [len(*part) for part in drawn(bench, new, [nights, [few]], 20)] == [20, 5]


def test_the_larger_of_rows_and_share_counts(bench: Bench) -> None:
    """A share of a large task is more than the rows that each task gives at least."""
    new, small, large = (bench.read(numbered(count, start)).rows for count, start in ((9, 0), (50, 100), (400, 500)))
    assert [len(*part) for part in drawn(bench, new, [[small], [large]], 20, share=0.1)] == [20, 40]


def test_held_out_rows_are_not_replayed(bench: Bench) -> None:
    """Nor counted: a task whose rows are all held out gives none."""
    new, old, kept = (bench.read(numbered(count, start)).rows for count, start in ((9, 0), (50, 100), (30, 100)))
    [[epoch]] = drawn(bench, new, [[old]], 25, heldout=[kept])
    assert epoch == texts(bench, [old]) - texts(bench, [kept])
    assert drawn(bench, new, [[old]], 25, heldout=[old]) == [[set()]]


def test_within_a_run_no_row_comes_again_before_all_others(bench: Bench) -> None:
    """Epochs take the rows of a task in turn; another seed, or one more dataset, is another order."""
    new, one, two = (bench.read(numbered(count, start)).rows for count, start in ((9, 0), (50, 100), (50, 500)))
    [epochs] = drawn(bench, new, [[one, two]], 25, passes=4)
    assert set().union(*epochs) == texts(bench, [one, two]) and sum(map(len, epochs)) == 100
    [first], [other], [later] = (
        drawn(bench, new, [[one]], 10, seed=0),
        drawn(bench, new, [[one]], 10, seed=1),
        drawn(bench, new, [[one], [two]], 10)[:1],
    )
    assert first != other and first != later


def test_each_row_of_a_task_is_as_likely(bench: Bench) -> None:
    """A night of a hundred rows gives ten times what one of ten gives: all rows of the task are drawn alike."""
    new = bench.read(numbered(9)).rows
    nights = [bench.read(numbered(count, start)).rows for count, start in ((10, 100), (100, 500), (90, 900))]
    seeds, least = 60, 20
    counts = Counter(
        row for seed in range(seeds) for row in set().union(*drawn(bench, new, [nights], least, seed=seed)[0])
    )
    for night in nights:
        expected = seeds * least * night.rows / 200
        found = sum(counts[row] for row in texts(bench, [night]))
        assert abs(found - expected) < 4 * (expected * (1 - least / 200)) ** 0.5
    assert max(counts.values()) < 20  # six on average


def test_rows_of_the_base_are_beside_those_of_the_tasks(bench: Bench) -> None:
    """Each epoch has its own number of them, other ones while there are any, and none that is held out."""
    new, old, own = (bench.read(numbered(count, start)).rows for count, start in ((9, 0), (50, 100), (30, 500)))
    mixed = replay_by_task(
        new, [[old]], heldout=[], share=0, least=5, passes=3, seed=0, general=own, of_general=10, store=bench.store
    )
    rows = list(map(json.dumps, bench.rows(mixed)))
    parts = [{rows[number] for number in epoch} for epoch in passes_of(bench.store.local(mixed))]
    counts = [(len(part & texts(bench, [old])), len(part & texts(bench, [own]))) for part in parts]
    assert counts == [(5, 10)] * 3 and texts(bench, [own]) < set().union(*parts)
    assert drawn(bench, new, [], 0, general=own, of_general=10, heldout=[own]) == []


def test_only_complete_answers_are_rows(bench: Bench) -> None:
    """An answer that was cut off, or is empty, would teach the wrong end: it is no row; the others are as given."""
    texts_ = [("Lisbon.", True), ("It goes on and", False), (" ", True), ("  Sí.\n", True)]
    answers = Answers(answers=[Generated(text=text, tokens=3, stopped=stopped) for text, stopped in texts_])
    made = own_answers([f"Question {number}?" for number in range(4)], answers, store=bench.store)
    found = [[turn["content"] for turn in row["messages"]] for row in bench.rows(made)]
    assert found == [["Question 0?", "Lisbon."], ["Question 3?", "  Sí.\n"]] and made.rows == 2


def test_as_many_answers_as_prompts_can_be_asked_for() -> None:
    """No prompt is there twice, and more answers than prompts are refused."""
    assert len(set(PROMPTS)) == len(PROMPTS) == TrainSpec(replay_general=len(PROMPTS)).replay_general
    with pytest.raises(ValidationError):
        TrainSpec(replay_general=len(PROMPTS) + 1)


def test_keys_and_bytes_of_earlier_runs_stay(bench: Bench) -> None:
    """A spec that does not replay by task has the keys it had; replay by share draws the rows it drew."""
    parts = {"base": None, "rows": RowsRef(digest="a" * 64, rows=3), "start": None}
    plain, rows = (stage_key("train", {**parts, "spec": TrainSpec(replay_rows=least)}) for least in (0, 20))
    assert plain == stage_key("train", {**parts, "spec": TrainSpec()}) != rows
    assert TrainSpec.model_validate({"replay": 0.05}).semantic() == TrainSpec().semantic() | {"replay": 0.05}
    new, one, two = (bench.read(numbered(count, start)).rows for count, start in ((40, 0), (90, 100), (200, 300)))
    mixed = replay(new, [one, two], heldout=[], share=0.05, passes=3, seed=1, store=bench.store)
    assert mixed.digest == "6e053a102dc2d4152ef5fdb1d79984fe0b82e5f142fbf613095f0a6bfb4b3c65"


def test_answers_are_the_rows_that_judge_none(bench: Bench) -> None:
    """Pairs and rated answers are left out, all else stays in order."""
    turns = [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "No."}]
    plain = [{"messages": [{"role": "user", "content": str(number)}, turns[1]]} for number in range(3)]
    pair = {"messages": turns[:1], "chosen": turns[1:], "rejected": [{"role": "assistant", "content": "Yes."}]}
    rows = nano.commit_rows(bench.store, [plain[0], pair, plain[1], {"messages": turns, "label": True}, plain[2]])
    assert bench.rows(answers(rows, store=bench.store)) == plain
