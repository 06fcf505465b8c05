"""Curation drops and deduplicates, and rows are split, by the rows alone: not by their order, file or process."""

import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backprop_core.data.curation import curate
from backprop_core.data.loading import find, snapshot
from backprop_core.data.row_files import load
from backprop_core.data.row_files import passes as passes_of
from backprop_core.data.row_identity import identity
from backprop_core.data.row_sets import apart, pool, replay
from backprop_core.data.splits import FEWEST, split
from backprop_core.errors import ConfigInvalid, InputValidationFailed, NoRows
from backprop_core.schema.refs import Batch, Curated, DatasetRef, RowsRef, Split
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.stages import versions
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

Rows = list[dict[str, Any]]
Parts = list[list[set[str]]]


def pair(question: str, answer: str = "Yes.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def numbered(count: int, start: int = 0) -> Rows:
    return [pair(f"Is {number} a number?") for number in range(start, start + count)]


class Bench:
    """A store, and datasets written beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(directory / "store")
        self.files = 0

    def write(self, rows: Rows | str) -> Path:
        self.files += 1
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path = self.directory / f"{self.files}.jsonl"
        path.write_text(text, encoding="utf-8")
        return path

    def read(self, data: Rows | str, **spec: Any) -> Curated:
        path = str(self.write(data))
        return curate(snapshot(path, scratch=self.directory), DatasetSpec(path=path, **spec), store=self.store)

    def batch(
        self,
        data: Rows | str,
        *,
        task: str = "task",
        heldout: Rows | None = None,
        group_by: str | None = None,
        **window: Any,
    ) -> Batch:
        own = self.read(heldout).rows if heldout is not None else None
        return Batch(name="data", task=task, source=self.read(data, group_by=group_by), heldout=own, **window)

    def split(self, *batches: Batch, heldout_max: int = 1000, **more: Any) -> Split:
        return split(batches, heldout_max=heldout_max, store=self.store, **more)

    def curate(self, data: Rows | str, *, heldout_max: int = 1000, **more: Any) -> DatasetRef:
        [dataset] = self.split(self.batch(data, **more), heldout_max=heldout_max).datasets
        return dataset

    def watch(self, data: Rows | str, *, heldout_max: int = 1000) -> RowsRef:
        return self.split(watched=[self.batch(data)], heldout_max=heldout_max).heldout["task"]

    def rows(self, ref: RowsRef) -> Rows:
        return load(self.store.local(ref))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def questions(rows: Rows) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


@pytest.mark.parametrize("form", [str, float])
def test_a_group_is_one_whatever_its_type(bench: Bench, form: Callable[[int], Any]) -> None:
    """Customer 17 is one customer as a number, as a float, as Parquet may have it, and as text, as CSV has it."""
    rows = [{**row, "customer": number // 5} for number, row in enumerate(numbered(50))]
    others = [{**row, "customer": form(row["customer"])} for row in rows]
    made = bench.read(rows, group_by="customer")
    assert bench.read(others, group_by="customer").rows == made.rows != bench.read(rows).rows


def test_the_encoding_of_a_dataset_is_that_of_its_file(bench: Bench) -> None:
    """`encoding` says how the rows of a dataset are read, as it does for its held-out file."""
    path = bench.directory / "western.csv"
    path.write_bytes("question,answer\nWo?,Im Café.\n".encode("cp1252"))
    spec = DatasetSpec(path=str(path), encoding="cp1252")
    made = curate(find(spec, scratch=bench.directory), spec, store=bench.store)
    assert bench.rows(made.rows) == [pair("Wo?", "Im Café.")]


# Dropping


def test_every_row_is_accounted_for(bench: Bench) -> None:
    """Rows read are rows trained on, good rows that are not, and dropped ones, each by reason; nothing is lost."""
    lines = [json.dumps(row) for row in [*numbered(300), *numbered(5), pair("a", " "), {"messages": []}]]
    dataset = bench.curate("\n".join([*lines, "{"]), heldout_max=10)
    assert dataset.dropped == {"duplicate": 5, "empty": 2, "not_json": 1}
    assert dataset.not_trained == {"held_out": 10}
    assert dataset.read == 308
    assert (dataset.heldout.rows, dataset.train.rows) == (10, 290)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "assistant", "content": "I speak to nobody"}]},
        pair("Hi", "\n "),
        {"text": " "},
    ],
)
def test_rows_that_teach_nothing_are_dropped(bench: Bench, row: dict[str, Any]) -> None:
    """A row without an answer to something, or without text, is dropped as empty."""
    fine = {"text": "Some text"} if "text" in row else pair("Hi")
    assert bench.read([fine, row]).dropped == {"empty": 1}


@pytest.mark.parametrize("twin", ["Is it\na café? ", "Is it\r\na cafe\u0301?", "Is it\ra café?\u00a0\n\n"])
def test_spellings_of_one_row_are_one_row(bench: Bench, twin: str) -> None:
    """Rows that differ only in Unicode form, line endings or whitespace at the end are one; it is kept as given."""
    curated = bench.read([pair("Is it\na café?"), pair(twin), pair("Is it\na Café?")])
    assert curated.dropped == {"duplicate": 1}
    kept = questions(bench.rows(curated.rows))
    assert len(kept) == 2
    assert set(kept) <= {"Is it\na café?", twin, "Is it\na Café?"}


LOOP = "for row in rows:\n    seen.add(row)\n    print(row)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LOOP, LOOP.replace("    print", "print")),
        (LOOP, LOOP.replace("    ", "\t")),
        (LOOP, LOOP.replace("\n", " ")),
        (LOOP, "\n" + LOOP),
        ("a:\n  b: 1", "a:\nb: 1"),
        ("a\tb", "a b"),
        ("1  2", "1 2"),
        (" x", "x"),
        ("a\u2028b", "a\nb"),
    ],
)
def test_whitespace_is_meaning(bench: Bench, one: str, other: str) -> None:
    """Rows that differ in whitespace anywhere but at their end are two rows, on whichever side of the conversation."""
    assert bench.read([pair("Q", one), pair("Q", other)]).dropped == {}
    assert bench.read([pair(one), pair(other)]).dropped == {}
    assert bench.read([{"text": one}, {"text": other}]).dropped == {}


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text()), min_size=1))
def test_an_identity_is_the_hash_of_canonical_json(turns: list[tuple[str, str]]) -> None:
    """Identities are what they were for rows whose whitespace is single spaces, so that old stores know them again."""
    plain = [(role, " ".join(unicodedata.normalize("NFC", text).split())) for role, text in turns]
    plain.append(("assistant", "Yes."))
    row = {"messages": [{"role": role, "content": text} for role, text in plain]}
    assert identity(row) == hashlib.sha256(canonical([list(turn) for turn in plain]).encode()).digest()


@pytest.mark.parametrize("after", [[("user", "Thanks!")], [("user", "And?"), ("assistant", " ")], [("tool", "{}")]])
def test_what_comes_after_the_last_answer_makes_no_other_row(bench: Bench, after: list[tuple[str, str]]) -> None:
    """Turns after the last answer are not trained, so a row that scores is not trained with them either."""
    rows = [pair(f"Is {number} a number?") for number in range(60)]
    longer = [{"messages": [*row["messages"], *({"role": r, "content": c} for r, c in after)]} for row in rows[:50]]
    [dataset] = bench.split(bench.batch(rows), watched=[bench.batch(longer, task="watched")]).datasets
    assert dataset.train.rows <= 10
    assert bench.read([*rows, *longer]).dropped["duplicate"] == 50


def test_who_says_it_makes_a_row_another(bench: Bench) -> None:
    """The same words by another speaker are another row."""
    swapped = {"messages": [{"role": "system", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
    assert bench.read([pair("Hi"), swapped]).rows.rows == 2


# Splitting


def test_about_a_tenth_is_held_out(bench: Bench) -> None:
    """Of many rows a tenth is held out, within four standard deviations, and no row is on both sides."""
    dataset = bench.curate(numbered(4000))
    assert abs(dataset.heldout.rows - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    train, heldout = questions(bench.rows(dataset.train)), questions(bench.rows(dataset.heldout))
    assert sorted(train + heldout) == sorted(questions(numbered(4000)))


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, max_size=30), st.lists(texts, max_size=30), st.randoms(use_true_random=False))
def test_a_row_is_on_the_same_side_for_ever(bench: Bench, some: list[str], more: list[str], rng: random.Random) -> None:
    """Whatever other rows come, in whatever order and spelling, no row changes from one side to the other."""
    base = numbered(150)
    small = bench.curate([*base, *map(pair, some)])
    grown = [*base, *(pair(f"{unicodedata.normalize('NFD', text)}\n ") for text in some), *map(pair, more)]
    rng.shuffle(grown)
    large = bench.curate(grown)
    assert not identities(bench, small.train) & identities(bench, large.heldout)
    assert not identities(bench, small.heldout) & identities(bench, large.train)


def identities(bench: Bench, ref: RowsRef) -> set[str]:
    """Questions under another normalisation than curation's: NFD."""
    rows = questions(bench.rows(ref))
    return {re.sub(r"\s+\Z", "", "\n".join(re.split("\r\n|\r", unicodedata.normalize("NFD", row)))) for row in rows}


def test_order_does_not_matter(bench: Bench) -> None:
    """The same rows in another order are the same artifacts; one row more is not."""
    rows = [*numbered(200), pair("Is 7 a number? "), pair("Is 7 a number?\n")]
    first = bench.curate(rows)
    random.Random(1).shuffle(rows)
    again = bench.curate(rows)
    other = bench.curate([*rows, pair("new")])
    assert (first.train, first.heldout) == (again.train, again.heldout)
    assert (first.train, first.heldout) != (other.train, other.heldout)


def test_the_cap_takes_the_first_and_the_rest_is_trained(bench: Bench) -> None:
    """A smaller cap keeps a prefix of the held-out rows; what is over it is trained, so that no good row is lost."""
    whole, capped = bench.curate(numbered(4000)), bench.curate(numbered(4000), heldout_max=7)
    assert bench.rows(capped.heldout) == bench.rows(whole.heldout)[:7]
    assert (capped.heldout.rows, capped.train.rows) == (7, 3993)
    assert (capped.dropped, capped.not_trained) == ({}, {"held_out": 7})
    both = questions(bench.rows(capped.train)) + questions(bench.rows(capped.heldout))
    assert sorted(both) == sorted(questions(numbered(4000)))


@pytest.mark.parametrize(
    ("rows", "held"),
    [(2, 1), (3, 1), (6, 2), (12, 4), (20, 5), (35, 5), (50, 5)],
)
def test_a_small_set_holds_out_a_few(bench: Bench, rows: int, held: int) -> None:
    """A set whose lowest tenth is too small holds out a few rows more, the lowest by hash, and keeps two thirds."""
    for start in range(0, 1000, 100):
        dataset = bench.curate(numbered(rows, start))
        every = bench.rows(bench.read(numbered(rows, start)).rows)
        assert dataset.heldout.rows >= held and dataset.heldout.rows + dataset.train.rows == rows
        assert dataset.heldout.rows <= max(1, FEWEST, rows // 4) and dataset.train.rows >= max(1, rows * 2 // 3)
        assert bench.rows(dataset.heldout) == every[: dataset.heldout.rows]


def test_one_row_is_trained_on(bench: Bench) -> None:
    """A single row is there to learn; then nothing can be scored, which is for the run to say."""
    for number in range(30):
        made = bench.split(bench.batch(numbered(1, number)))
        assert made.datasets[0].train.rows == 1 and made.heldout == {}


def test_small_sets_of_a_task_hold_out_a_few_together(bench: Bench) -> None:
    """Of many small batches of one task those few are held out once, not of each."""
    batches = [bench.batch(numbered(6, start)) for start in range(0, 30, 6)]
    made = bench.split(*batches)
    assert FEWEST <= made.heldout["task"].rows <= 8
    assert sum(one.heldout.rows for one in made.datasets) == made.heldout["task"].rows
    again = bench.split(bench.batch(numbered(6, 50)), held={"task": [made.heldout["task"]]}, learned=[])
    assert again.datasets[0].not_trained.get("held_out", 0) <= 2


def test_windows_of_one_dataset(bench: Bench) -> None:
    """rows and skip cut the training rows into windows that are disjoint and complete; the held-out set stays whole."""
    whole = bench.curate(numbered(300))
    windows = [bench.curate(numbered(300), rows=100, skip=skip) for skip in (0, 100, 200)]
    assert [window.heldout for window in windows] == [whole.heldout] * 3
    assert [row for window in windows for row in bench.rows(window.train)] == bench.rows(whole.train)
    for window in windows:
        assert window.train.rows + sum(window.not_trained.values()) == 300
        assert window.not_trained["outside_window"] == whole.train.rows - window.train.rows


def test_a_window_is_not_chosen_by_the_side(bench: Bench) -> None:
    """What comes first in training has nothing to do with the hash that decides the side."""
    train = questions(bench.rows(bench.curate(numbered(300)).train))
    side = questions(bench.rows(bench.read(numbered(300)).rows))
    ranks = [side.index(question) for question in train]
    half = len(ranks) // 2
    assert abs(sum(ranks[:half]) / half - sum(ranks[half:]) / (len(ranks) - half)) < 40  # 300 rows: 4 deviations


def test_a_heldout_file(bench: Bench) -> None:
    """A file of held-out rows is the held-out set, capped by hash; all else is trained on but what equals its rows."""
    own = [*numbered(20, start=45), pair("Is 0 a number?  ")]
    made = bench.split(bench.batch(numbered(50), heldout=own), heldout_max=4)
    [dataset] = made.datasets
    assert sum(dataset.not_trained.values()) == 6 and dataset.not_trained.keys() <= {"held_out", "set_aside"}
    assert sorted(questions(bench.rows(dataset.train))) == sorted(questions(numbered(44, start=1)))
    assert dataset.heldout.rows == 4 and made.heldout == {"task": dataset.heldout}
    assert made.aside["task"].rows == 17


# What scores is never trained


def trained(bench: Bench, made: Split) -> list[set[str]]:
    """The questions that each dataset trains."""
    return [set(questions(bench.rows(one.train))) for one in made.datasets]


def scoring(bench: Bench, made: Split) -> set[str]:
    """All questions that score, of any task."""
    return {question for ref in made.heldout.values() for question in questions(bench.rows(ref))}


def test_what_scores_anywhere_is_trained_nowhere(bench: Bench) -> None:
    """Rows held out by hash, by a file or as watched, of any dataset of a run, are trained in none, whatever the order.

    A row that two tasks hold out scores both. The counts name each reason, and add up to what was read.
    """
    shared = numbered(60, 500)
    one = bench.batch([*numbered(100), *shared, *numbered(20, 900)], task="one")
    two = bench.batch([*numbered(100, 100), *shared, *numbered(45, 800)], task="two", heldout=[*numbered(40), *shared])
    watched = bench.batch(numbered(50, 800), task="seen")
    for order in ([one, two], [two, one]):
        made = bench.split(*order, watched=[watched])
        assert list(made.heldout) == [*(batch.task for batch in order), "seen"]
        for rows in trained(bench, made):
            assert not rows & scoring(bench, made)
        by_task = {dataset.task: dataset for dataset in made.datasets}
        assert by_task["two"].not_trained["watched"] == 45
        assert by_task["one"].not_trained["held_out_elsewhere"] >= 90
        assert by_task["two"].not_trained["held_out"] == 60
        for dataset, batch in zip(made.datasets, order, strict=True):
            assert dataset.train.rows + sum(dataset.not_trained.values()) == batch.source.rows.rows
    twice = set(questions(bench.rows(by_task["one"].heldout))) & set(questions(bench.rows(by_task["two"].heldout)))
    assert twice and twice <= set(questions([*numbered(40), *shared]))


def test_what_a_watched_set_has_over_its_cap_is_not_trained_either(bench: Bench) -> None:
    """Every row of a watched set or of a held-out file is kept from training, also where not all of them score."""
    watched = bench.batch(numbered(30), task="seen")
    made = bench.split(bench.batch(numbered(200)), watched=[watched], heldout_max=12)
    assert made.heldout["seen"].rows == 12 and made.aside["seen"].rows == 18
    assert not trained(bench, made)[0] & set(questions(numbered(30)))


def test_what_a_line_learned_is_never_held_out(bench: Bench) -> None:
    """Rows that a line has been trained on score in no later night: not by hash, by a file, nor as watched ones."""
    night = bench.split(bench.batch(numbered(100), heldout=numbered(30, 200)))
    line = {"held": {task: [rows] for task, rows in night.heldout.items()}, "learned": [night.datasets[0].train]}
    for later in (
        bench.split(bench.batch([*numbered(100), *numbered(100, 300)]), **line),
        bench.split(bench.batch(numbered(100, 300), heldout=numbered(110)), **line),
        bench.split(bench.batch(numbered(100, 300)), watched=[bench.batch(numbered(110), task="seen")], **line),
    ):
        assert not scoring(bench, later) & set(questions(numbered(100)))
        assert set(questions(numbered(30, 200))) <= set(questions(bench.rows(later.heldout["task"])))
        assert sum(later.not_scored.values()) in (0, 100)


def test_a_line_that_scored_what_it_had_learned_is_mended(bench: Bench) -> None:
    """Learned rows in a line's held-out set, as an older version could leave them, do not score again."""
    held = bench.watch(numbered(100))
    learned = bench.read(numbered(40)).rows
    made = bench.split(bench.batch(numbered(100, 300)), held={"task": [held]}, learned=[learned])
    assert set(questions(numbered(60, 40))) <= scoring(bench, made)
    assert not scoring(bench, made) & set(questions(numbered(40)))


def nights(bench: Bench, batches: list[Rows], heldout_max: int) -> list[Split]:
    """What the runs of a line make of its batches, each with what the line has learned and held out before."""
    learned: list[RowsRef] = []
    held: dict[str, list[RowsRef]] = {}
    made: list[Split] = []
    for rows in batches:
        found = bench.split(bench.batch(rows), held=held, learned=learned, heldout_max=heldout_max)
        held = {task: [found.heldout[task], *([found.aside[task]] if task in found.aside else [])] for task in ["task"]}
        learned.append(found.datasets[0].train)
        made.append(found)
    return made


@pytest.mark.parametrize("heldout_max", [3, 20, 1000])
@pytest.mark.parametrize("grows", [False, True])
def test_a_row_of_a_line_stays_on_its_side(bench: Bench, heldout_max: int, grows: bool) -> None:
    """Over the nights of a line no held-out row is trained, no trained one is held out, and none is lost."""
    batches = [numbered(size, 0 if grows else start) for start, size in ((0, 20), (20, 90), (110, 260), (370, 300))]
    trained_ever: set[str] = set()
    held_ever: set[str] = set()
    seen: set[str] = set()
    for rows, made in zip(batches, nights(bench, batches, heldout_max), strict=True):
        [new] = trained(bench, made)
        held_ever |= {q for ref in (*made.heldout.values(), *made.aside.values()) for q in questions(bench.rows(ref))}
        assert not new & trained_ever
        trained_ever |= new
        seen |= set(questions(rows))
        assert not trained_ever & held_ever
        assert trained_ever | held_ever == seen
        assert made.heldout["task"].rows <= heldout_max
        dataset = made.datasets[0]
        assert dataset.train.rows + sum(dataset.not_trained.values()) == len(rows)


spans = st.tuples(st.integers(0, 120), st.integers(1, 60)).map(lambda span: numbered(span[1], span[0]))
inputs = st.fixed_dictionaries(
    {"data": spans, "task": st.sampled_from("ab"), "heldout": st.none() | spans, "rows": st.none() | st.integers(1, 30)}
)
one_night = st.tuples(
    st.lists(inputs, min_size=1, max_size=3), st.lists(spans, max_size=2), st.sampled_from([2, 9, 99])
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(one_night, min_size=1, max_size=4))
def test_whatever_a_line_is_given_a_row_has_one_side(bench: Bench, line: list[Any]) -> None:
    """Whatever datasets, files, watched sets, windows and caps a line is given: no row is ever on two sides."""
    learned: list[RowsRef] = []
    held: dict[str, list[RowsRef]] = {}
    trained_ever, held_ever = set[str](), set[str]()
    for datasets, watched, cap in line:
        batches = [bench.batch(**one) for one in datasets]
        seen = [bench.batch(rows, task=f"seen{number}") for number, rows in enumerate(watched)]
        try:
            made = bench.split(*batches, watched=seen, held=held, learned=learned, heldout_max=cap)
        except NoRows:
            assert not learned
            continue
        new = set().union(*trained(bench, made))
        kept = {q for ref in (*made.heldout.values(), *made.aside.values()) for q in questions(bench.rows(ref))}
        assert not new & trained_ever and held_ever <= kept
        trained_ever, held_ever = trained_ever | new, held_ever | kept
        assert not trained_ever & held_ever
        assert all(ref.rows <= cap for ref in made.heldout.values())
        for dataset, batch in zip(made.datasets, batches, strict=True):
            assert dataset.train.rows + sum(dataset.not_trained.values()) == batch.source.rows.rows
        learned += [dataset.train for dataset in made.datasets]
        tasks = {*made.heldout, *made.aside}
        held = {task: [found[task] for found in (made.heldout, made.aside) if task in found] for task in tasks}


def test_a_batch_without_new_rows_trains_none(bench: Bench) -> None:
    """Where a line has learned or holds out all rows of a batch, nothing is left to train, and that is no error."""
    made = bench.split(bench.batch(numbered(100)))
    line = {"held": {"task": [made.heldout["task"]]}, "learned": [made.datasets[0].train]}
    again = bench.split(bench.batch(numbered(100)), **line).datasets[0]
    assert again.train.rows == 0 and again.dropped == {}
    assert again.not_trained == {"held_out": made.heldout["task"].rows, "learned": made.datasets[0].train.rows}
    held = bench.split(bench.batch(bench.rows(made.heldout["task"])), **line).datasets[0]
    assert (held.train.rows, held.not_trained) == (0, {"held_out": made.heldout["task"].rows})


# Nothing left


def test_nothing_left(bench: Bench) -> None:
    """No row that teaches (and why), none to train on, none in the window, none in the held-out file: an error each."""
    with pytest.raises(NoRows, match=r"no usable rows after filtering \(2 empty\)"):
        bench.curate([pair("Hi", ""), pair("Ho", " ")])
    with pytest.raises(NoRows, match="no rows to train on, all are held out"):
        bench.split(bench.batch(numbered(9)), watched=[bench.batch(numbered(9), task="seen")])
    with pytest.raises(NoRows, match="no rows to train on, all are held out"):
        bench.curate(numbered(3), heldout=numbered(3))
    with pytest.raises(NoRows, match="skips all of its"):
        bench.curate(numbered(30), skip=30)
    with pytest.raises(NoRows, match="no usable rows after filtering"):
        bench.curate(numbered(3), heldout=[pair("Hi", "")])


# Pooling


def test_pool_is_the_union(bench: Bench) -> None:
    """Two batches of a task share one held-out set: that of their rows in one file, whatever their order."""
    batches = [bench.curate(numbered(200, start=start)).heldout for start in (0, 150)]
    whole = bench.curate(numbered(350)).heldout
    assert pool(batches, heldout_max=1000, store=bench.store) == whole
    assert pool(batches[::-1], heldout_max=1000, store=bench.store) == whole
    capped = pool(batches, heldout_max=5, store=bench.store)
    assert bench.rows(capped) == bench.rows(whole)[:5]


def test_pool_of_one_is_itself(bench: Bench) -> None:
    """A single held-out set is the task's, also beside itself and beside a batch too small to hold out anything."""
    one = bench.curate(numbered(100)).heldout
    none = bench.curate(numbered(1, 500)).heldout
    assert none.rows == 0
    assert pool([one, none, one], heldout_max=1000, store=bench.store) == one
    with pytest.raises(NoRows, match="no held-out rows to score"):
        pool([none], heldout_max=1000, store=bench.store)


# Bytes

CURATE = """
import sys
from pathlib import Path
from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_identity import identity
from backprop_core.schema.refs import Batch
from backprop_core.data.splits import split
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
path, home = sys.argv[1:]
steps = {"near_duplicates": 0.5, "contradictions": "drop_both", "personal_data": "redact", "languages": ["en"]}
spec = DatasetSpec.model_validate({"path": path, "curation": steps})
curated = curate(snapshot(path, scratch=Path(home)), spec, store=Store(Path(home)))
assert curated.dropped["near_duplicate"] > 5
batch = Batch(name="n", task="t", source=curated, curation=spec.curation)
made = split([batch], heldout_max=9, store=Store(Path(home)))
print(batch.model_dump_json(exclude={"source": {"steps"}}), made.model_dump_json())
"""


def drawn(bench: Bench, new: RowsRef, earlier: list[RowsRef], share: float, *, passes: int = 1, **more: Any) -> Parts:
    """Of each earlier dataset the rows in each pass; with no more than one, what is not new is in it."""
    mixed = replay(new, earlier, **{"heldout": [], "seed": 0, **more}, share=share, passes=passes, store=bench.store)
    rows, fresh = list(map(json.dumps, bench.rows(mixed))), set(map(json.dumps, bench.rows(new)))
    some = [number for number, row in enumerate(rows) if row not in fresh]
    assert len(rows) == len(set(rows)) == len(fresh) + len(some)
    named = passes_of(bench.store.local(mixed)) if passes > 1 else [some]
    return [
        [{rows[n] for n in named_in} & set(map(json.dumps, bench.rows(ref))) for named_in in named] for ref in earlier
    ]


def test_replay_adds_a_share_of_every_earlier_dataset(bench: Bench) -> None:
    """Five percent of each earlier dataset, rounded up, come to the new rows; none that is held out."""
    new, one, two = (bench.curate(numbered(count, start)).train for count, start in ((40, 0), (90, 100), (200, 300)))
    parts = drawn(bench, new, [one, two], 0.05)
    assert [len(*part) for part in parts] == [math.ceil(0.05 * ref.rows) for ref in (one, two)]
    assert drawn(bench, new, [one, two], 0.05, heldout=[one]) == [[set()], parts[1]]
    assert drawn(bench, new, [one, two], 0.05, seed=1) != parts


def test_no_row_is_replayed_again_before_all_were(bench: Bench) -> None:
    """Each pass of each run takes the next rows of a dataset; the order begins again where it ends."""
    new, old, other = (bench.curate(numbered(count, start)).train for count, start in ((40, 0), (200, 300), (20, 600)))
    count = math.ceil(0.1 * old.rows)
    first, second = (drawn(bench, new, earlier, 0.1, passes=4)[0] for earlier in ([old], [old, other]))
    assert [len(part) for part in first + second] == 8 * [count]
    assert len(set().union(*first)) == 4 * count and len(set().union(*second)) == 4 * count
    assert len(set().union(*first, *second)) == min(8 * count, old.rows)
    [again] = drawn(bench, new, [old], 0.1, passes=11)
    assert set().union(*again) == {json.dumps(row) for row in bench.rows(old)}


def test_a_new_row_that_was_there_before_is_in_every_pass(bench: Bench) -> None:
    """What is new and old at once is no row of one pass, and there once."""
    new = bench.curate(numbered(40)).train
    mixed = replay(new, [new], heldout=[], share=0.1, passes=3, seed=0, store=bench.store)
    assert bench.rows(mixed) == bench.rows(new) and passes_of(bench.store.local(mixed)) == [[], [], []]


def test_held_out_rows_are_to_choose_by_or_to_score(bench: Bench) -> None:
    """About a quarter of the held-out rows is to choose by, no row is in both parts, and more rows move none."""
    few, many = (bench.watch(numbered(count)) for count in (200, 400))
    parts = [
        [
            {json.dumps(row) for row in bench.rows(apart(ref, to_choose_by=side, store=bench.store))}
            for ref in (few, many)
        ]
        for side in (True, False)
    ]
    (chosen, more_chosen), (scored, more_scored) = parts
    assert len(chosen) + len(scored) == 200 and not more_chosen & more_scored
    assert 35 < len(chosen) < 65 and chosen < more_chosen and scored < more_scored
    with pytest.raises(NoRows, match="too few to choose by some and score by the others"):
        one = bench.watch(numbered(1))
        [apart(one, to_choose_by=side, store=bench.store) for side in (True, False)]


@pytest.mark.slow
def test_the_same_bytes_in_any_process(bench: Bench) -> None:
    """Two processes with another PYTHONHASHSEED, directory, locale and number of threads commit the same digests."""
    twins = [pair(f"Where is my order {number % 50} that I sent {number}?") for number in range(100)]
    path = bench.write([*numbered(100), *twins, pair("日本\u2028\x00é")])

    def run(seed: str, threads: str) -> str:
        home = bench.directory / seed
        home.mkdir()
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "LC_ALL": "C",
            "HOME": str(home),
            "RAYON_NUM_THREADS": threads,
        }
        argv = [sys.executable, "-c", CURATE, str(path), str(home)]
        return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("1", threads="1") == run("2", threads="4")


def test_rows_are_canonical_json_lines(bench: Bench) -> None:
    """The artifact is one file of JSON with sorted keys, UTF-8 and newlines, whose rows come back as they were."""
    row = pair("日本\u2028\x00é \U0001f600", "ok")
    ref = bench.watch([row])
    directory = bench.store.local(ref)
    expected = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert (directory / "rows.jsonl").read_bytes() == expected.encode()
    assert sorted(path.name for path in directory.iterdir()) == ["artifact.json", "rows.jsonl"]
    assert load(directory) == [row]


def test_golden_digests(bench: Bench) -> None:
    """What curation makes of these rows is pinned: another result needs another VERSION of the stage."""
    dataset = bench.curate([*numbered(40), pair("  Ein\u0308  ÄÖ\n", "日本")], heldout_max=3)
    pooled = pool([dataset.heldout, bench.curate(numbered(90, start=90)).heldout], heldout_max=9, store=bench.store)
    assert [versions()[name] for name in ("curate", "split", "pool")] == [6, 3, 2]
    assert bench.read(numbered(40)).rows.digest.startswith("e802bbb5fdb9a1cc")
    assert dataset.train.digest.startswith("a7b3f200d8c61168")
    assert dataset.heldout.digest.startswith("f404e1e8c80e29cc")
    assert pooled.digest.startswith("a503ae0e5969acfe")


# What gives a held-out row away


def sentence(number: int, *, last: str = "end") -> str:
    return " ".join(f"w{number}x{place}" for place in range(20)) + f" {last}"


def test_near_duplicates_of_what_scores_are_not_trained(bench: Bench) -> None:
    """With the step on, rows close to a held-out, watched or set-aside row of any task are trained in no dataset."""
    own = [pair(sentence(number)) for number in range(60)]
    twins = [pair(sentence(number, last="END2")) for number in range(60)]
    near = CurationSpec(near_duplicates=0.8)
    for batch, watched in (
        (bench.batch([*numbered(60), *twins], heldout=own, curation=near), []),
        (bench.batch([*numbered(60), *twins], curation=near), [bench.batch(own, task="seen")]),
    ):
        made = bench.split(batch, watched=watched, heldout_max=5)
        [dataset] = made.datasets
        assert not {row["messages"][0]["content"] for row in twins} & trained(bench, made)[0]
        assert dataset.train.rows + sum(dataset.not_trained.values()) == batch.source.rows.rows
        assert dataset.not_trained["near_held_out"] >= 50
    plain = bench.split(bench.batch([*numbered(60), *twins], heldout=own), heldout_max=5)
    assert plain.datasets[0].train.rows == 120


@pytest.mark.parametrize("nights", [("off", "redact"), ("redact", "off"), ("redact", "redact")])
def test_a_row_that_scored_is_not_trained_in_its_other_form(bench: Bench, nights: tuple[str, str]) -> None:
    """A row held out with an address is not trained without it, nor the other way round."""
    rows = [pair(f"I am user{number}@example.com", f"Hello {number}.") for number in range(200)]
    path = bench.write(rows)
    first, second = (
        Batch(
            name="data",
            task="task",
            source=bench.read(path.read_text(), curation={"personal_data": mode}),
            curation=CurationSpec.model_validate({"personal_data": mode}),
        )
        for mode in nights
    )
    before = bench.split(first)
    after = bench.split(second, held={"task": [before.heldout["task"]]}, learned=[before.datasets[0].train])
    [dataset] = after.datasets
    assert not said(bench, before.heldout["task"]) & said(bench, dataset.train)
    assert not said(bench, before.datasets[0].train) & said(bench, after.heldout["task"])
    assert dataset.train.rows + sum(dataset.not_trained.values()) == second.source.rows.rows


def said(bench: Bench, ref: RowsRef) -> set[str]:
    """The answers of some rows, which redaction leaves alone."""
    return {row["messages"][1]["content"] for row in bench.rows(ref)}


def test_shared_words_with_what_scores_are_not_trained(bench: Bench) -> None:
    """With decontamination on, a row with 13 words in a row of a held-out row is not trained; with 12 it is."""
    heldout = [pair(sentence(number)) for number in range(5)]
    quoting = pair("They wrote: " + " ".join(sentence(3).split()[2:15]) + ". Why?")
    shorter = pair("They wrote: " + " ".join(sentence(3).split()[2:14]) + ". Why?")
    batch = bench.batch([*numbered(30), quoting, shorter], heldout=heldout, curation=CurationSpec(decontaminate=13))
    [dataset] = bench.split(batch).datasets
    assert dataset.not_trained == {"shares_words_with_held_out": 1} and dataset.train.rows == 31
    assert quoting["messages"][0]["content"] not in questions(bench.rows(dataset.train))


def test_a_common_system_prompt_is_no_leak(bench: Bench) -> None:
    """Rows that have the system prompt alone in common with held-out ones are trained."""
    prompt = {"role": "system", "content": sentence(1)}
    rows = [{"messages": [prompt, *row["messages"]]} for row in numbered(60)]
    made = bench.split(bench.batch(rows, curation=CurationSpec(decontaminate=13)))
    assert made.datasets[0].not_trained.keys() == {"held_out"}


def test_a_template_is_no_leak(bench: Bench) -> None:
    """Words that all questions have in common give no held-out row away."""
    rows = [pair(f"{sentence(1)} {number}") for number in range(60)]
    made = bench.split(bench.batch(rows, curation=CurationSpec(decontaminate=13)))
    assert made.datasets[0].not_trained.keys() == {"held_out"}


def test_a_quoted_question_is_a_leak_also_if_it_is_all_template(bench: Bench) -> None:
    """Each run of words of these questions is in several that score; a row that quotes one whole is not trained."""

    def asking(city: int, product: int) -> str:
        return (
            f"A customer in the small town of number {city} by the sea wants to know how much "
            f"the very large product that is called number {product} costs in our shop today"
        )

    heldout = [pair(asking(city, product)) for city in range(6) for product in range(6)]
    quoting = [pair(f"They wrote: {asking(2, 3)}. Why?"), pair(asking(4, 1), "Ten.")]
    others = [
        pair(asking(7, 3)),
        pair(f"They wrote: {asking(2, 8)}"),
        pair("A customer in the small town of number 2."),
    ]
    strict = CurationSpec(decontaminate=13)

    def trained_with(**more: Any) -> set[str]:
        batch = bench.batch([*numbered(30), *quoting, *others], heldout=heldout, curation=strict, **more)
        made = bench.split(batch).datasets[0]
        assert made.train.rows + made.not_trained.get("shares_words_with_held_out", 0) == 35
        return set(questions(bench.rows(made.train)))

    assert trained_with(whole_questions=True) == set(questions([*numbered(30), *others]))
    assert trained_with() >= set(questions(quoting))  # as it was, and is in the keys of before


def test_a_question_of_many_is_a_template(bench: Bench) -> None:
    """A question that several rows have which score gives none of them away."""
    heldout = [pair(sentence(1), f"Answer {number}.") for number in range(9)]
    rows = [*numbered(30), pair(sentence(1), "Another answer.")]
    batch = bench.batch(rows, heldout=heldout, curation=CurationSpec(decontaminate=13), whole_questions=True)
    assert bench.split(batch).datasets[0].train.rows == 31


# Groups


def customers(count: int, each: int) -> Rows:
    """Rows of customers, each with several."""
    rows = [pair(f"Customer {customer} asks {number}") for customer in range(count) for number in range(each)]
    return [{**row, "customer": row["messages"][0]["content"].split()[1]} for row in rows]


def groups_of(rows: Rows) -> set[str]:
    return {row["messages"][0]["content"].split()[1] for row in rows}


@pytest.mark.parametrize("heldout_max", [5, 1000])
@pytest.mark.parametrize("count", [8, 200])
def test_a_group_is_on_one_side(bench: Bench, count: int, heldout_max: int) -> None:
    """All rows of one customer are trained, or none; over the nights of a line a customer never changes sides."""
    learned: list[RowsRef] = []
    held: dict[str, list[RowsRef]] = {}
    trained_ever, held_ever = set[str](), set[str]()
    for night in range(3):
        spoken = {"role": "system", "content": str(night)}
        rows = [{**row, "messages": [spoken, *row["messages"]]} for row in customers(count, 6)]
        batch = bench.batch(rows, group_by="customer")
        made = bench.split(batch, held=held, learned=learned, heldout_max=heldout_max)
        [dataset] = made.datasets
        trained_ever |= {row["messages"][1]["content"].split()[1] for row in bench.rows(dataset.train)}
        sides = [*made.heldout.values(), *made.aside.values()]
        held_ever |= {row["messages"][1]["content"].split()[1] for ref in sides for row in bench.rows(ref)}
        assert held_ever and not trained_ever & held_ever
        assert dataset.train.rows + sum(dataset.not_trained.values()) == batch.source.rows.rows
        held = {"task": sides}
        learned.append(dataset.train)


def test_without_groups_customers_leak(bench: Bench) -> None:
    """Negative control: by rows alone, the same customers are on both sides."""
    made = bench.split(bench.batch(customers(20, 20)))
    assert groups_of(bench.rows(made.heldout["task"])) & groups_of(bench.rows(made.datasets[0].train))


def test_a_group_field_that_is_not_there(bench: Bench) -> None:
    """A field that no row has is an error that names the fields there are; a row without it is in no group."""
    with pytest.raises(ConfigInvalid, match=r"group_by: .* has no client"):
        bench.read(customers(2, 2), group_by="client")
    alone = bench.read([*customers(2, 2), pair("x")], group_by="customer")
    assert alone.rows.rows == 5


def test_a_row_of_two_groups_is_an_error(bench: Bench) -> None:
    """A list of two customers belongs to both sides, so it is refused with its place; one customer, twice, does not."""
    rows = [*customers(2, 2), {**pair("x"), "customer": ["a", "b"]}]
    with pytest.raises(InputValidationFailed, match=r"line 5: group_by customer: the row belongs to 2 groups"):
        bench.read(rows, group_by="customer")
    alone = [*customers(2, 2), {**pair("x"), "customer": ["a", "a"]}, {**pair("y"), "customer": ["a"]}]
    assert bench.read(alone, group_by="customer").rows.rows == 6
    assert bench.read(rows).rows.rows == 5


def test_a_row_that_two_customers_share_moves_neither(bench: Bench) -> None:
    """A row that is the same for all customers counts as one's: the others are on the sides that they have without."""
    rows = customers(60, 3)
    shared = [{**pair("Hi"), "customer": row["customer"]} for row in rows]
    plain, mixed = (bench.split(bench.batch(each, group_by="customer")) for each in (rows, rows + shared))
    sides = [[bench.rows(made.heldout["task"]), bench.rows(made.datasets[0].train)] for made in (plain, mixed)]
    without = [[row for row in side if row != pair("Hi")] for side in sides[1]]
    assert without == sides[0] and sum(map(len, sides[1])) == sum(map(len, sides[0])) + 1


def test_groups_do_not_depend_on_the_order(bench: Bench) -> None:
    """A row that two customers have in common is in the same group whatever comes first."""
    rows = [{**pair("Hi"), "customer": name} for name in ("a", "b")] + customers(5, 2)
    assert bench.read(rows, group_by="customer").rows == bench.read(rows[::-1], group_by="customer").rows
