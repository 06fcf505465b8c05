"""Rows are dropped by their perplexity, counted, sampled and accounted for in the lineage; the others are ordered."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from backprop_core.data.perplexity_tails import sift
from backprop_core.data.row_files import load, ranks, times
from backprop_core.errors import NoRows
from backprop_core.schema.refs import Batch, Curated, Perplexities
from backprop_core.schema.specs import CurationSpec
from backprop_core.store.cache_keys import canonical
from tests.backprop_core.data.test_curation import Bench, numbered, questions


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def value(question: str) -> float:
    """The perplexity of `Is 7 a number?` is 17; of each tenth row none is known."""
    return 10.0 + int(question.split()[1])


def scored(bench: Bench, made: Curated, unknown: int = 1000) -> Perplexities:
    rows = enumerate(questions(load(bench.store.local(made.rows))))
    lines = [{"row": row, "perplexity": value(question)} for row, question in rows if value(question) < unknown]
    with bench.store.begin("perplexity") as directory:
        (directory / "perplexity.jsonl").write_text("".join(canonical(line) + "\n" for line in lines))
        return bench.store.commit(directory, Perplexities, record={}, rows=len(lines))


def left(bench: Bench, made: Curated) -> list[int]:
    return sorted(int(question.split()[1]) for question in questions(bench.rows(made.rows)))


@pytest.mark.parametrize(
    ("perplexity", "expected"),
    [
        ({"drop_highest": 0.1}, range(36)),
        ({"drop_lowest": 0.1}, range(4, 40)),
        ({"max": 29}, range(20)),
        ({"min": 30.5}, range(21, 40)),
        ({"drop_highest": 0.25, "drop_lowest": 0.05, "max": 35}, range(2, 26)),
    ],
)
def test_tails_and_bounds(bench: Bench, perplexity: dict[str, float], expected: range) -> None:
    """A share of either tail is dropped, and what is outside the bounds; the counts add up."""
    plain = bench.read([*numbered(40), *numbered(3)])
    spec = CurationSpec.model_validate({"perplexity": perplexity})
    made = sift(plain, scored(bench, plain), spec, store=bench.store)
    assert left(bench, made) == list(expected)
    gone = sum(made.dropped[reason] for reason in made.dropped if "perplexity" in reason)
    assert gone == 40 - len(expected) and made.rows.rows + sum(made.dropped.values()) == made.read == 43
    assert (made.steps[-1].step, made.steps[-1].rows, made.steps[-1].dropped) == ("perplexity", 40, gone)


def test_the_lineage_says_so(bench: Bench) -> None:
    """Each dropped row has its outcome, reason and perplexity in the lineage, and the first five are shown."""
    plain = bench.read([*numbered(40), *numbered(3)])
    spec = CurationSpec.model_validate({"perplexity": {"max": 39}})
    made = sift(plain, scored(bench, plain), spec, store=bench.store)
    assert made.lineage and plain.lineage
    directory = bench.store.local(made.lineage)
    table = pyarrow.parquet.read_table(directory / "lineage.parquet").to_pylist()
    assert Counter((one["outcome"], one["reason"]) for one in table) == {
        ("kept", None): 30,
        ("dropped", "duplicate"): 3,
        ("dropped", "high_perplexity"): 10,
    }
    assert next((one["number"], one["detail"]) for one in table if one["reason"] == "high_perplexity") == (
        31,
        "perplexity 40",
    )
    shown = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert Counter(one["reason"] for one in shown) == {"duplicate": 3, "high_perplexity": 5}
    assert "Is 30 a number?" in next(one["text"] for one in shown if one["reason"] == "high_perplexity")
    record = bench.store.record(made.lineage.digest)
    assert record["source"] == bench.store.record(plain.lineage.digest)["source"]
    assert record["rows"] == made.rows.digest


def test_rows_without_a_score_stay(bench: Bench) -> None:
    """A row that was too long to score is in no tail, and comes last in a curriculum."""
    plain = bench.read(numbered(40))
    spec = CurationSpec.model_validate({"perplexity": {"drop_highest": 0.5}, "curriculum": "perplexity"})
    made = sift(plain, scored(bench, plain, unknown=30), spec, store=bench.store)
    assert left(bench, made) == [*range(10), *range(20, 40)]
    order = dict(zip(questions(bench.rows(made.rows)), ranks(made.rows, bench.store).tolist(), strict=True))
    assert sorted(order, key=order.__getitem__)[:10] == questions(numbered(10))


def test_the_easiest_first(bench: Bench) -> None:
    """With `curriculum: perplexity` the training rows are in the order of their perplexities; times stay beside."""
    rows = [{**row, "t": f"2026-01-{day + 1:02d}"} for day, row in enumerate(numbered(30))]
    plain = bench.read(rows, time_split={"field": "t"})
    spec = CurationSpec.model_validate({"curriculum": "perplexity"})
    made = sift(plain, scored(bench, plain), spec, store=bench.store)
    assert made.rows.rows == 30 and times(made.rows, bench.store).tolist() == times(plain.rows, bench.store).tolist()
    batch = Batch(name="data", task="task", source=made, last=0.2, curation=spec)
    assert questions(bench.rows(bench.split(batch).datasets[0].train)) == questions(numbered(24))


def test_nothing_left_is_an_error(bench: Bench) -> None:
    """What drops all rows is an error, and so is what drops none by its setting."""
    plain = bench.read(numbered(4))
    with pytest.raises(NoRows, match="none of 4 rows is left"):
        sift(plain, scored(bench, plain), CurationSpec.model_validate({"perplexity": {"max": 2}}), store=bench.store)
    with pytest.raises(ValidationError, match="drops nothing"):
        CurationSpec.model_validate({"perplexity": {}})
