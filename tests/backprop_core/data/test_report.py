"""What a report says of a dataset is so; its page shows hostile rows as text and needs nothing else."""

import json
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from backprop_core.data import chat_encoding, loading
from backprop_core.data.loading import snapshot
from backprop_core.data.report import FIGURES, Base, DatasetReport, lengths, refusals_of, report
from backprop_core.data.report_limits import exceeded, limit
from backprop_core.data.report_page import page
from backprop_core.data.report_rows import read
from backprop_core.errors import ConfigInvalid
from backprop_core.models import base as bases
from backprop_core.schema.specs import DatasetSpec
from tests.backprop_core import nano

HOSTILE = "</pre></td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e\x00\"'&amp;{{ 7*7 }}"


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def examined(tmp_path: Path, lines: Sequence[Any], *, base: Path | None = None, max_length: int = 64) -> DatasetReport:
    path = tmp_path / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    source = snapshot(str(path), scratch=tmp_path)
    spec, refusals = DatasetSpec(path=str(path)), None
    if base:
        refusals = refusals_of(spec, bases.chat_template_in(base))
    with TemporaryDirectory() as scratch, ExitStack() as files:
        rows = read(source, spec, refusals, Path(scratch), files)
        return report(source.digest, rows, spec, base and Base("base", base, max_length), Path(scratch))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"))


def test_every_row_is_counted_once(tmp_path: Path, base: Path) -> None:
    """Usable and dropped rows together are the rows read, by reason, each with its place."""
    rows = [chat("a", "b"), chat("a", "b "), "nope", chat("c", " "), chat("d", "e"), {"prompt": 3, "completion": "x"}]
    made = examined(tmp_path, rows, base=base)
    assert (made.read, made.usable) == (6, 2)
    assert {one.reason: (one.rows, one.samples[0].place) for one in made.dropped} == {
        "duplicate": (1, "line 2"),
        "not_json": (1, "line 3"),
        "empty": (1, "line 4"),
        "not_text": (1, "line 6"),
    }
    assert made.figures == {
        "dropped": 4,
        "malformed": 2,
        "refused_by_template": 0,
        "empty": 1,
        "duplicates": 1,
        "near_duplicates": 0,
        "contradictions": 0,
        "personal_data": 0,
        "quality": 0,
        "cut": 0,
        "without_answer": 0,
    }
    assert made.figures.keys() == FIGURES.keys()


def test_what_optional_steps_find(tmp_path: Path) -> None:
    """Near duplicates, contradictions, personal data and bad answers among the usable rows, each with its place."""
    words = [f"word{number}" for number in range(40)]
    rows = [
        chat("Tell me a long story", " ".join(words)),
        chat("Tell me a long story", " ".join([*words, "more"])),
        chat("Write to whom?", "Write to ann.smith@example.org"),
        chat("Repeat after me", "repeat after me"),
    ]
    made = examined(tmp_path, rows)
    assert made.usable == 4 and {name: made.figures[name] for name in ("near_duplicates", "contradictions")} == {
        "near_duplicates": 1,
        "contradictions": 2,
    }
    assert made.figures["personal_data"] == 1
    found = {one.reason: one.samples[0] for one in made.found}
    assert {found["near_duplicate"].place, found["near_duplicate"].detail.split(" to ")[1]} == {"line 1", "line 2"}
    assert found["echo"].place == "line 4"
    assert "ann.smith" not in json.dumps([one.model_dump() for one in made.found])


def test_memory_grows_by_the_index_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After reading, a row takes less than 200 bytes, however long it is."""
    monkeypatch.setattr(loading, "DETECTED_FROM", 100)

    def held(count: int) -> int:
        path, long = tmp_path / f"{count}.jsonl", "long question " * 40
        path.write_text("".join(json.dumps(chat(f"{number} {long}", "yes")) + "\n" for number in range(count)))
        source, spec = snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path))
        tracemalloc.start()
        with ExitStack() as files:
            rows = read(source, spec, None, tmp_path, files)
            usable = rows.usable()
            found = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(usable.index) == rows.read == count
        return found

    assert (held(3000) - held(1500)) / 1500 < 200


def test_languages_are_counted(tmp_path: Path) -> None:
    """Long rows are counted by language, rows that say too little as unsure, together all that were sampled."""
    german = "Guten Tag, wo finde ich bitte die Rechnung für meine letzte Bestellung? Vielen Dank im Voraus."
    english = "Good morning, where can I please find the invoice for my last order? Thank you in advance."
    made = examined(
        tmp_path, [chat(german, german), chat(english, english), chat(english, "Yes, of course."), chat("1", "2")]
    )
    assert made.languages["en"] == 2 and made.languages["de"] == 1 and sum(made.languages.values()) == 4
    assert "Languages" in page([made])


def test_a_dataset_without_a_usable_row_has_a_report(tmp_path: Path, base: Path) -> None:
    """It says why each row is dropped, and its page can be written."""
    made = examined(tmp_path, [chat("a", ""), chat("b", "")], base=base)
    assert (made.usable, made.tokens, made.rows) == (0, None, []) and made.figures["empty"] == 2
    assert "without an answer" not in page([made]) and "empty" in page([made])


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_quantiles_and_histogram(count: int) -> None:
    """Quantiles are those of numpy; the histogram has each length once, in the bin that contains it."""
    values = [int(value) for value in np.random.default_rng(count).lognormal(5, 1, count)]
    made = lengths(values)
    for name, share in {"p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99}.items():
        assert getattr(made, name) == np.quantile(values, share, method="inverted_cdf")
    assert (made.shortest, made.longest, made.total) == (min(values), max(values), sum(values))
    assert [one.rows for one in made.histogram] == [
        sum(one.start <= value < one.end for value in values) for one in made.histogram
    ]
    assert sum(one.rows for one in made.histogram) == count
    assert all(one.end == two.start for one, two in zip(made.histogram, made.histogram[1:], strict=False))


def test_tokens_are_those_of_training(tmp_path: Path, base: Path) -> None:
    """Lengths, share of labels and cut rows are those of the examples that training makes."""
    rows = [{"messages": row["messages"]} for row in nano.chats(60)]
    made = examined(tmp_path, rows, base=base, max_length=60)
    distinct = list({json.dumps(row): row for row in rows}.values())
    examples = chat_encoding.encode(AutoTokenizer.from_pretrained(base), distinct, max_length=10_000)
    tokens = made.tokens
    assert tokens is not None and tokens.exact and tokens.lengths.rows == len(distinct)
    counted = sum(len(example.ids) for example in examples)
    assert abs(tokens.lengths.total - counted) <= 2 * len(distinct)
    assert tokens.cut == sum(len(example.ids) > 60 for example in examples) > 0
    labels = sum(sum(example.labels) for example in examples)
    assert tokens.label_share == pytest.approx(labels / counted, abs=0.02)


def test_limits(tmp_path: Path) -> None:
    """A figure over a count or over a share of the rows read is named; at the limit it is not."""
    made = examined(tmp_path, [chat("a", "b")] * 2 + [chat(f"q{number}", "b") for number in range(8)])
    assert exceeded(made, [limit("duplicates>1"), limit("duplicates > 10%"), limit("dropped>10.0 %")]) == []
    [words] = exceeded(made, [limit("duplicates>9.9%")])
    assert "duplicates is 1 of 10 rows (10 %), over 9.9 %" in words
    assert len(exceeded(made, [limit("duplicates>0"), limit("dropped>0"), limit("empty>0")])) == 2
    with pytest.raises(ConfigInvalid, match="base model"):
        exceeded(made, [limit("cut>0")])


@pytest.mark.parametrize("text", ["", "duplicates", "duplicates>x", "duplicates<5", "duplicates>-1", "near>5%", ">5"])
def test_a_limit_that_is_none(text: str) -> None:
    """What is no limit, or names no figure, is an error that lists the names."""
    with pytest.raises(ConfigInvalid) as error:
        limit(text)
    assert all(name in error.value.hint for name in FIGURES)


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_rows_are_text(tmp_path: Path, base: Path) -> None:
    """Markup, template syntax and control characters of rows, reasons and names neither run nor hide."""
    rows = [chat(HOSTILE, HOSTILE), chat(HOSTILE, HOSTILE), {"prompt": "a", "completion": "b", "weight<b>": 3}]
    made = examined(tmp_path, [*rows, chat(HOSTILE, "")], base=base).model_copy(update={"data": HOSTILE})
    text = page([made, made])
    parsed = Page(text)
    known = "html head meta title style body main h1 h2 h3 ul li a section p div b span details summary pre svg rect"
    assert set(parsed.tags) <= {*known.split(), "table", "tr", "th", "td", "mark", "s"}
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in parsed.text and "{{ 7*7 }}" in parsed.text
    assert [character for character in text if not character.isprintable() and character != "\n"] == []


def test_a_report_holds_no_secret(tmp_path: Path, base: Path) -> None:
    """Secrets of rows are blanked in the record and on the page, whether the row is kept, dropped or shown."""
    secret = "hf_" + "a1B2c3D4" * 4
    rows = [chat(f"use {secret}", f"I use {secret}"), chat(f"keep {secret}", ""), {"odd": secret}, chat("a", "b")]
    made = examined(tmp_path, rows, base=base)
    assert "***" in made.model_dump_json() and secret not in made.model_dump_json()
    assert secret not in page([made])


def test_the_page_is_alone(tmp_path: Path, base: Path) -> None:
    """It has no script, loads nothing, links only into itself, and is the same each time."""
    made = examined(tmp_path, [chat("a", "b"), chat("c", "d" * 99)], base=base)
    text = page([made, made])
    links = {value for name, value in Page(text).attributes if name in ("href", "src", "action")}
    assert text == page([made, made]) and links == {"#data-1", "#data-2"}
    assert "url(" not in text and "@import" not in text and "prefers-color-scheme: dark" in text
    assert "<mark>" in text and "<s>" in text


def test_the_record_reads_back(tmp_path: Path, base: Path) -> None:
    """A report as JSON is the same report again."""
    made = examined(tmp_path, [chat("a", "b"), "nope"], base=base)
    assert DatasetReport.model_validate_json(made.model_dump_json()) == made
