"""Caps and weights by source: counted by reason, the same whatever the order of the files, and no row changes sides."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backprop_core.data.batching import Item, by_pass
from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import load, repeats
from backprop_core.data.row_sets import replay
from backprop_core.data.splits import split
from backprop_core.data.steps.source_shares import refuse_unused
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.refs import Batch, Curated, RowsRef, Split
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.schema.specs.curation import SourceShare
from backprop_core.store.artifacts import Store
from tests.backprop_core.data.test_curation import Rows, numbered, questions

FAQ = {"files": "faq-*"}


class Bench:
    """A store, and directories of files."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.store, self.made = directory, Store(directory / "store"), 0

    def curate(self, files: dict[str, Rows], *sources: dict[str, Any]) -> Curated:
        self.made += 1
        path = self.directory / str(self.made)
        path.mkdir()
        for name, rows in files.items():
            (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = DatasetSpec.model_validate({"path": str(path), "curation": {"sources": sources}})
        return curate(snapshot(str(path), scratch=self.directory), spec, store=self.store)

    def split(self, made: Curated) -> Split:
        batch = Batch(name="data", task="task", source=made, curation=CurationSpec())
        return split([batch], heldout_max=1000, store=self.store)

    def questions(self, ref: RowsRef) -> set[str]:
        return set(questions(load(self.store.local(ref))))

    def times(self, ref: RowsRef) -> dict[str, int]:
        """Question -> how often an epoch trains it."""
        rows = questions(load(self.store.local(ref)))
        again = repeats(self.store.local(ref))
        return dict.fromkeys(rows, 1) if again is None else dict(zip(rows, (again + 1).tolist(), strict=True))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("names", "patterns", "what"),
    [
        (["faq-9", "faq-10"], ["fqa-*", "*"], "fqa-* matches no file; the files are faq-9, faq-10"),
        (
            ["faq-9", "faq-10"],
            ["faq-*", "*-10"],
            "*-10 matches only files that belong to faq-*, which stands before",
        ),
        ([f"{number}" for number in range(12)], ["a"], "7, 8, 9 and 2 more"),
    ],
)
def test_a_pattern_without_a_file_is_an_error(names: list[str], patterns: list[str], what: str) -> None:
    """A misspelt pattern has no effect, so it is refused, with the names that there are in their order."""
    shares = [SourceShare(files=pattern) for pattern in patterns]
    with pytest.raises(ConfigInvalid) as caught:
        refuse_unused(names, shares)
    assert what in str(caught.value)
    refuse_unused(["fqa-1", "faq-10", "b-10", "a", ""], shares)


def test_curation_refuses_a_pattern_without_a_file(bench: Bench) -> None:
    """The names are those of the files of a directory."""
    with pytest.raises(ConfigInvalid, match=r"the files are faq-1[.]jsonl, faq-2[.]jsonl, tickets"):
        bench.curate(FILES, {"files": "ticket-*", "max_rows": 3})


FILES = {"faq-1.jsonl": numbered(60), "faq-2.jsonl": numbered(60, 60), "tickets.jsonl": numbered(80, 500)}
TICKETS = set(questions(numbered(80, 500)))


def test_a_cap_is_of_all_files_of_the_pattern(bench: Bench) -> None:
    """Of two files 30 rows are used together, the others are counted, and a third file is whole."""
    made = bench.curate(FILES, {**FAQ, "max_rows": 30})
    assert made.dropped == {"over_max_rows": 90} and made.rows.rows == 110
    assert bench.questions(made.rows) > TICKETS
    [report] = made.steps
    assert (report.step, report.rows, report.dropped) == ("sources", 200, 90)


def test_the_order_decides_nothing(bench: Bench) -> None:
    """Rows in another order, and in other files of the pattern, are the same dataset."""
    sources = [{**FAQ, "max_rows": 50, "weight": 0.5}, {"files": "t*", "weight": 1.5}]
    first = bench.curate(FILES, *sources)
    faq, tickets = numbered(120), numbered(80, 500)
    random.Random(1).shuffle(faq)
    random.Random(2).shuffle(tickets)
    again = bench.curate({"faq-z.jsonl": faq[:7], "faq-a.jsonl": faq[7:], "t.jsonl": tickets}, *sources)
    assert (again.rows, again.dropped) == (first.rows, first.dropped)


def test_a_row_of_two_files_is_of_the_first_pattern(bench: Bench) -> None:
    """A duplicate belongs to the same pattern whatever the names of its files."""
    for names in (("faq-a.jsonl", "z.jsonl"), ("faq-z.jsonl", "a.jsonl")):
        made = bench.curate({names[0]: numbered(40), names[1]: numbered(40)}, {**FAQ, "max_rows": 10})
        assert made.rows.rows == 10


def test_a_cap_is_no_choice_of_sides(bench: Bench) -> None:
    """Of capped rows about a tenth is held out, not the first ones by the hash that holds out."""
    made = bench.split(bench.curate({"faq-1.jsonl": numbered(3000)}, {**FAQ, "max_rows": 1000}))
    assert 70 < made.heldout["task"].rows < 130


def test_a_fraction_is_a_sample(bench: Bench) -> None:
    """Of a weight of 0.25 a quarter of the rows is used; a row is in each larger sample, whatever rows there are."""
    small, large = (bench.curate({"faq-1.jsonl": numbered(2000)}, {**FAQ, "weight": weight}) for weight in (0.25, 0.5))
    assert 430 < small.rows.rows < 570 and small.dropped == {"not_sampled": 2000 - small.rows.rows}
    assert bench.questions(small.rows) < bench.questions(large.rows)
    part = bench.curate({"faq-1.jsonl": numbered(500)}, {**FAQ, "weight": 0.25})
    assert bench.questions(part.rows) == bench.questions(small.rows) & set(questions(numbered(500)))


@pytest.mark.parametrize("weight", [1.5, 2.5])
def test_a_weight_is_how_often_an_epoch_trains_a_row(bench: Bench, weight: float) -> None:
    """With a weight of 1.5 a row is trained once or twice an epoch, and scored once; others are as before."""
    made = bench.split(bench.curate(FILES, {**FAQ, "weight": weight}))
    train, plain = made.datasets[0].train, bench.split(bench.curate(FILES))
    assert train.rows == plain.datasets[0].train.rows and made.heldout == plain.heldout
    times = bench.times(train)
    assert {count for question, count in times.items() if question in TICKETS} == {1}
    faq = [count for question, count in times.items() if question not in TICKETS]
    assert set(faq) == {int(weight), int(weight) + 1} and abs(sum(faq) / len(faq) - weight) < 0.2
    items = [Item(None, None, row) for row in range(train.rows)]  # type: ignore[arg-type]
    [epoch] = by_pass(items, train, bench.store)
    assert [epoch.count(row) for row in range(train.rows)] == list(times.values())
    [before] = by_pass(items, plain.datasets[0].train, bench.store)
    assert before == list(range(train.rows))


def test_a_weight_stays_in_a_mix_with_replayed_rows(bench: Bench) -> None:
    """Rows that are trained twice are so beside replayed ones."""
    train = bench.split(bench.curate(FILES, {**FAQ, "weight": 2})).datasets[0].train
    old = bench.curate({"old.jsonl": numbered(50, 900)}).rows
    mixed = replay(train, [old], heldout=[], share=0.1, passes=2, seed=0, store=bench.store)
    times = bench.times(mixed)
    assert {question: times[question] for question in bench.times(train)} == bench.times(train)
    assert sum(times.values()) == sum(bench.times(train).values()) + 10


def test_a_single_file_is_of_every_file(bench: Bench) -> None:
    """The default pattern is that of all files; the name of a single file counts for nothing, as it is in no key."""
    path = bench.directory / "faq-1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in numbered(40)))
    for sources, expected in (([{"max_rows": 10}], 10), ([{**FAQ, "max_rows": 10}], 40)):
        spec = DatasetSpec.model_validate({"path": str(path), "curation": {"sources": sources}})
        made = curate(snapshot(str(path), scratch=bench.directory), spec, store=bench.store)
        assert made.rows.rows == expected


def test_a_heldout_file_is_whole() -> None:
    """What scores is neither capped nor weighted; the rest of its curation is that of the dataset."""
    spec = CurationSpec.model_validate({"sources": [{"max_rows": 1}], "quality": ["echo"]})
    assert spec.of_heldout == CurationSpec(quality=["echo"])


def test_without_it_a_key_is_what_it_was() -> None:
    """Sources are in a key only if there are some; a weight of nothing is refused."""
    assert CurationSpec().semantic() == {}
    with pytest.raises(ValidationError):
        CurationSpec.model_validate({"sources": [{"weight": 0}]})


@pytest.mark.parametrize("patterns", [("faq-*", "faq-*"), ("*", "faq-*"), ("faq-*", "*", "logs-*")])
def test_a_pattern_that_can_match_no_file_is_refused(patterns: tuple[str, ...]) -> None:
    """A cap or weight without effect is an error that names its pattern; a last pattern for all other files is not."""
    CurationSpec.model_validate({"sources": [{"files": "faq-*"}, {"files": "*"}]})
    with pytest.raises(ValidationError, match=re.escape(f"{patterns[-1]} can match no file")):
        CurationSpec.model_validate({"sources": [{"files": pattern} for pattern in patterns]})
