"""Curation drops, deduplicates and splits by the rows alone: not by their order, their file or the process."""

import json
import math
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backprop_core.curate import apart, curate, load, pool, replay
from backprop_core.curate import passes as passes_of
from backprop_core.errors import NoRows
from backprop_core.formats import snapshot
from backprop_core.keys import VERSIONS
from backprop_core.refs import DatasetRef, RowsRef
from backprop_core.specs import DatasetSpec
from backprop_core.store import Store

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

    def curate(
        self,
        data: Rows | str,
        *,
        heldout: Rows | None = None,
        heldout_max: int = 1000,
        scored: Sequence[RowsRef] = (),
        watch: bool = False,
        **spec: Any,
    ) -> DatasetRef:
        path, apart = self.write(data), self.write(heldout) if heldout is not None else None
        return curate(
            snapshot(str(path), scratch=self.directory),
            DatasetSpec(path=str(path), heldout=apart and str(apart), **spec),
            name="data",
            task="task",
            heldout=snapshot(str(apart), scratch=self.directory) if apart else None,
            heldout_max=heldout_max,
            scored=scored,
            watch=watch,
            store=self.store,
        )

    def rows(self, ref: RowsRef) -> Rows:
        return load(self.store.local(ref))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def questions(rows: Rows) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


# Dropping


def test_every_row_is_accounted_for(bench: Bench) -> None:
    """Rows read are rows trained on, rows held out and rows dropped by reason; nothing is lost."""
    lines = [json.dumps(row) for row in [*numbered(300), *numbered(5), pair("a", " "), {"messages": []}]]
    dataset = bench.curate("\n".join([*lines, "{"]), heldout_max=10)
    over = dataset.dropped.pop("heldout_over_cap")
    assert dataset.dropped == {"duplicate": 5, "empty": 2, "not_json": 1}
    assert dataset.read == 308
    assert (dataset.heldout.rows, dataset.train.rows + over) == (10, 290)


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
    assert bench.curate([fine, row], watch=True).dropped == {"empty": 1}


@pytest.mark.parametrize("twin", ["Is  it a\tcafé? ", "Is it\na cafe\u0301?", "\u00a0Is it a café?"])
def test_spellings_of_one_row_are_one_row(bench: Bench, twin: str) -> None:
    """Rows that differ in whitespace or Unicode composition alone are duplicates; the kept one is as it was given."""
    dataset = bench.curate([pair("Is it a café?"), pair(twin), pair("Is it a Café?")], watch=True)
    assert dataset.dropped == {"duplicate": 1}
    kept = questions(bench.rows(dataset.heldout))
    assert len(kept) == 2
    assert set(kept) <= {"Is it a café?", twin, "Is it a Café?"}


def test_who_says_it_makes_a_row_another(bench: Bench) -> None:
    """The same words by another speaker are another row."""
    swapped = {"messages": [{"role": "system", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
    assert bench.curate([pair("Hi"), swapped], watch=True).heldout.rows == 2


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
    base = numbered(60)
    small = bench.curate([*base, *map(pair, some)])
    grown = [*base, *(pair(f" {unicodedata.normalize('NFD', text)}\n") for text in some), *map(pair, more)]
    rng.shuffle(grown)
    large = bench.curate(grown)
    assert not identities(bench, small.train) & identities(bench, large.heldout)
    assert not identities(bench, small.heldout) & identities(bench, large.train)


def identities(bench: Bench, ref: RowsRef) -> set[str]:
    """Questions under another normalisation than curation's: without any whitespace, NFD."""
    return {"".join(unicodedata.normalize("NFD", question).split()) for question in questions(bench.rows(ref))}


def test_order_does_not_matter(bench: Bench) -> None:
    """The same rows in another order are the same artifacts; one row more is not."""
    rows = [*numbered(200), pair("Is  7 a number?"), pair("Is 7  a number?")]
    first = bench.curate(rows)
    random.Random(1).shuffle(rows)
    again = bench.curate(rows)
    other = bench.curate([*rows, pair("new")])
    assert (first.train, first.heldout) == (again.train, again.heldout)
    assert (first.train, first.heldout) != (other.train, other.heldout)


def test_the_cap_takes_the_first_and_trains_on_no_other(bench: Bench) -> None:
    """A smaller cap keeps a prefix of the held-out rows, and changes nothing about what is trained on."""
    whole, capped = bench.curate(numbered(500)), bench.curate(numbered(500), heldout_max=7)
    assert bench.rows(capped.heldout) == bench.rows(whole.heldout)[:7]
    assert capped.train == whole.train
    assert capped.dropped == {"heldout_over_cap": whole.heldout.rows - 7}


def test_windows_of_one_dataset(bench: Bench) -> None:
    """rows and skip cut the training rows into windows that are disjoint and complete; the held-out set stays whole."""
    whole = bench.curate(numbered(300))
    windows = [bench.curate(numbered(300), rows=100, skip=skip) for skip in (0, 100, 200)]
    assert [window.heldout for window in windows] == [whole.heldout] * 3
    assert [row for window in windows for row in bench.rows(window.train)] == bench.rows(whole.train)
    assert all(window.dropped == {} for window in windows)


def test_a_window_is_not_chosen_by_the_side(bench: Bench) -> None:
    """What comes first in training has nothing to do with the hash that decides the side."""
    train = questions(bench.rows(bench.curate(numbered(300)).train))
    side = questions(bench.rows(bench.curate(numbered(300), watch=True).heldout))
    ranks = [side.index(question) for question in train]
    half = len(ranks) // 2
    assert abs(sum(ranks[:half]) / half - sum(ranks[half:]) / (len(ranks) - half)) < 40  # 300 rows: 4 deviations


def test_a_heldout_file(bench: Bench) -> None:
    """A file of held-out rows is the held-out set, capped by hash; all else is trained on but what equals its rows."""
    dataset = bench.curate(numbered(50), heldout=[*numbered(20, start=45), pair(" Is 0 a  number?")], heldout_max=4)
    assert dataset.dropped == {"heldout": 6}
    assert questions(bench.rows(dataset.heldout)) == questions(bench.rows(dataset.heldout))[:4]
    assert sorted(questions(bench.rows(dataset.train))) == sorted(questions(numbered(44, start=1)))
    assert dataset.heldout.rows == 4


def test_rows_that_a_line_scores_are_not_trained_on(bench: Bench) -> None:
    """A row that an earlier batch held out by a file of its own is dropped from a later batch that brings it."""
    line = bench.curate(numbered(3, start=100), heldout=numbered(20)).heldout
    later = bench.curate(numbered(50), scored=[line])
    assert not set(questions(bench.rows(later.train))) & set(questions(numbered(20)))
    assert later.train.rows + later.heldout.rows + later.dropped["heldout"] == 50
    assert bench.curate(numbered(50)).train.rows > later.train.rows


def test_watched_rows_are_not_trained_on(bench: Bench) -> None:
    """A watched dataset is held out as a whole, the first by hash up to the cap."""
    dataset = bench.curate(numbered(30), watch=True, heldout_max=12)
    assert (dataset.train.rows, dataset.heldout.rows) == (0, 12)
    assert dataset.dropped == {"heldout_over_cap": 18}


# Nothing left


def heldout_side(bench: Bench) -> dict[str, Any]:
    """A row that is on the held-out side."""
    return bench.rows(bench.curate(numbered(100)).heldout)[0]


def test_nothing_left(bench: Bench) -> None:
    """No row that teaches, none to train on, none in the window, none in the held-out file: an error each."""
    with pytest.raises(NoRows, match="no row is left"):
        bench.curate([pair("Hi", "")])
    with pytest.raises(NoRows, match="all of its rows are held out"):
        bench.curate([heldout_side(bench)])
    with pytest.raises(NoRows, match="all of its rows are held out"):
        bench.curate(numbered(3), heldout=numbered(3))
    with pytest.raises(NoRows, match="training rows are skipped"):
        bench.curate(numbered(30), skip=30)
    with pytest.raises(NoRows, match="no row is left"):
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
    trained = bench.rows(bench.curate(numbered(100)).train)[0]
    none = bench.curate([trained]).heldout
    assert none.rows == 0
    assert pool([one, none, one], heldout_max=1000, store=bench.store) == one
    with pytest.raises(NoRows, match="nothing can be scored"):
        pool([none], heldout_max=1000, store=bench.store)


# Bytes

CURATE = """
import sys
from pathlib import Path
from backprop_core.curate import curate
from backprop_core.formats import snapshot
from backprop_core.specs import DatasetSpec
from backprop_core.store import Store
path, home = sys.argv[1:]
dataset = curate(snapshot(path, scratch=Path(home)), DatasetSpec(path=path), name="n", task="t",
                 heldout=None, heldout_max=9, store=Store(Path(home)))
print(dataset.model_dump_json())
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
    few, many = (bench.curate(numbered(count), watch=True).heldout for count in (200, 400))
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
    with pytest.raises(NoRows, match="for a search or for the gate"):
        one = bench.curate(numbered(1), watch=True).heldout
        [apart(one, to_choose_by=side, store=bench.store) for side in (True, False)]


def test_the_same_bytes_in_any_process(bench: Bench) -> None:
    """Two processes with another PYTHONHASHSEED, directory and locale commit the same digests."""
    path = bench.write([*numbered(100), pair("日本\u2028\x00é")])

    def run(seed: str) -> str:
        home = bench.directory / seed
        home.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "HOME": str(home)}
        argv = [sys.executable, "-c", CURATE, str(path), str(home)]
        return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("1") == run("2")


def test_rows_are_canonical_json_lines(bench: Bench) -> None:
    """The artifact is one file of JSON with sorted keys, UTF-8 and newlines, whose rows come back as they were."""
    row = pair("日本\u2028\x00é \U0001f600", "ok")
    ref = bench.curate([row], watch=True).heldout
    directory = bench.store.local(ref)
    expected = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert (directory / "rows.jsonl").read_bytes() == expected.encode()
    assert sorted(path.name for path in directory.iterdir()) == ["artifact.json", "rows.jsonl"]
    assert load(directory) == [row]


def test_golden_digests(bench: Bench) -> None:
    """What curation makes of these rows is pinned: another result needs another VERSION of the stage."""
    dataset = bench.curate([*numbered(40), pair("  Ein\u0308  ÄÖ\n", "日本")], heldout_max=3)
    pooled = pool([dataset.heldout, bench.curate(numbered(90, start=90)).heldout], heldout_max=9, store=bench.store)
    assert (VERSIONS["curate"], VERSIONS["pool"]) == (2, 1)
    assert dataset.train.digest.startswith("6e9ff5c14e27583d")
    assert dataset.heldout.digest.startswith("f404e1e8c80e29cc")
    assert pooled.digest.startswith("a503ae0e5969acfe")
