"""Curation steps: each drops what it says, keeps its negative control, and leaves every row accounted for."""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import load
from backprop_core.data.steps import length
from backprop_core.data.steps.personal_data import NEEDED, in_text, is_card, is_iban, redacted
from backprop_core.data.steps.quality import is_symbols
from backprop_core.data.steps.row_step import rewritten
from backprop_core.data.steps.shingles import conversation
from backprop_core.data.token_lengths import Counted
from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.schema.refs import Curated, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical, stage_key

Rows = list[dict[str, Any]]
LONG = " ".join(f"word{number}" for number in range(40))


def pair(question: str, answer: str = "Yes.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


class Bench:
    """A store, and curation of rows in it."""

    def __init__(self, directory: Path) -> None:
        self.store, self.path = Store(directory / "store"), directory / "rows.jsonl"

    def curate(self, rows: Rows, **curation: Any) -> Curated:
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        spec = DatasetSpec.model_validate({"path": str(self.path), "curation": curation})
        return curate(snapshot(str(self.path), scratch=self.path.parent), spec, store=self.store)

    def rows(self, made: Curated) -> Rows:
        return load(self.store.local(made.rows))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


BAD = {
    "repetition": pair("Say it", "I will say it again. " * 20),
    "symbols": pair("Draw", "#### ---- **** ==== ++++ //// a"),
    "refusal": pair("How?", "I'm sorry, but I can't help with that."),
    "truncated": pair("Explain", f"{LONG} and then the"),
    "echo": pair("Where is my order?", "where is my order"),
}
GOOD = [
    pair("Say it", f"{LONG}."),
    pair("Code", "```python\nfor x in rows:\n    print(x[0], {1: 2})\n```"),
    pair("Sorry?", "I'm sorry to hear that. Your refund is on its way."),
    pair("Name", "Ada Lovelace"),
    pair("List", "\n".join(f"- item {number}" for number in range(40))),
    {"text": LONG},
]


@pytest.mark.parametrize("rule", BAD)
def test_a_quality_rule_drops_what_breaks_it(bench: Bench, rule: str) -> None:
    """Each rule alone drops its bad row and no other; without rules all are kept."""
    rows = [*BAD.values(), *GOOD[:-1]]
    made = bench.curate(rows, quality=[rule])
    assert made.dropped == {rule: 1} and BAD[rule] not in bench.rows(made)
    assert bench.curate(rows).dropped == {}


def test_raw_text_has_no_answer(bench: Bench) -> None:
    """Raw text is judged by its repetitions and symbols alone."""
    made = bench.curate([{"text": LONG}, {"text": "la la la " * 30}], quality=list(BAD))
    assert made.dropped == {"repetition": 1}


def test_rows_in_other_languages_are_dropped(bench: Bench) -> None:
    """Rows surely in another language are dropped; short ones, code and the wanted languages are kept."""
    german = pair("Wo ist meine Bestellung? Ich warte seit einer Woche.", "Sie kommt morgen bei Ihnen an.")
    french = pair("Je voudrais annuler ma commande, s'il vous plaît.", "C'est fait, vous recevrez un message.")
    english = pair("My account is locked. Please reset the password, thanks!", "It is reset. Look into your mail.")
    rows = [german, french, english, pair("Ok?", "Ok."), GOOD[1]]
    assert bench.curate(rows, languages=["en"]).dropped == {"language": 2}
    assert bench.curate(rows, languages=["en", "de"]).dropped == {"language": 1}
    with pytest.raises(ConfigInvalid, match="xx cannot be recognized"):
        bench.curate(rows, languages=["xx"])


class Words:
    """Counts words where curation counts tokens."""

    def count(self, rows: Sequence[dict[str, Any]]) -> list[Counted]:
        sizes = [sum(len(turn["content"].split()) for turn in row["messages"]) for row in rows]
        return [Counted(size, 0, size) for size in sizes]


def test_rows_too_short_or_too_long_are_dropped() -> None:
    """The bounds themselves are allowed; without a bound on one side nothing is dropped there."""
    rows = [pair(" ".join(["word"] * count), "Yes.") for count in (1, 2, 3, 4)]

    def reasons(least: int | None, most: int | None) -> list[str | None]:
        return [finding and finding.reason for finding in length.step(Words(), least, most)(rows)]

    assert reasons(3, 4) == ["too_short", None, None, "too_long"]
    assert reasons(None, 4) == [None, None, None, "too_long"] and reasons(3, None) == ["too_short", None, None, None]


PRIVATE = {
    "e-mail": "Write to ada.lovelace+x@mail.example.org.",
    "phone": "Call +49 (0)30 123456-78 or (555) 123-4567",
    "IBAN": "Pay to DE89 3704 0044 0532 0130 00 now",
    "card": "My card is 4111 1111 1111 1111.",
    "secret": "Use hf_abcdefghijklmnop1234 for it",
}
NOT_PRIVATE = [
    "Order 1234567890123 of 2024-01-15 12:30 costs 1,234.56",
    "Version 1.2.3.4 at 10.0.0.1, card 4111 1111 1111 1112, IBAN DE89370400440532013001",
    "a @ b, @ada, 3 + 4 = 7, f(x)=y@z, sk-learn, commit 0123456789abcdef0123456789abcdef01234567",
]


@pytest.mark.parametrize("kind", PRIVATE)
def test_personal_data_is_redacted(kind: str) -> None:
    """What has the pattern and the right check digits gives way to its kind, and no text around it."""
    clean = redacted(PRIVATE[kind], Counter())
    assert f"[{kind}]" in clean and not any(digits in clean for digits in ("1111", "3704", "4567", "ada", "hf_"))
    assert clean.split()[0] == PRIVATE[kind].split()[0]


@pytest.mark.parametrize("text", NOT_PRIVATE)
def test_other_numbers_stay(text: str) -> None:
    """Negative control: order numbers, dates, versions and wrong check digits are no personal data."""
    assert redacted(text, Counter()) == text


@given(st.text())
def test_redaction_takes_any_text(text: str) -> None:
    """Whatever a text is, redacting it twice is redacting it once."""
    once = redacted(text, Counter())
    assert redacted(once, Counter()) == once


SECRETS = [  # for each pattern of IN_TEXT, in its order
    *(
        "https://hooks.slack.com/services/T0/B0",
        "api.telegram.org/bot12:ab",
        "ftp://me:pass1@host",
        f"x://{'k' * 16}@h",
    ),
    *(
        "?sig=abc",
        "Authorization: Basic abc",
        "Api-Key: abcdefgh",
        "Set-Cookie: a=b",
        "Bearer abc.def1",
        "basic abcdeFG1",
    ),
    *("Password: a1b2c3d4e5", "--hub --to\u212aen a1b2c3d4e5", "acce\u017f\u017f_\u212aey=abc"),
]
PARTS = [
    *SECRETS,
    *"=:,; \"'\\/?&-_\n",
    "token",
    "\u017fecret",
    "KEY",
    "x-",
    "://",
    "bot",
    "@",
    "auth",
    "a1b2c3d4",
    "null",
]


@pytest.mark.parametrize(("pattern", "example", "needed"), list(zip(in_text(), SECRETS, NEEDED, strict=True)))
def test_no_pattern_is_skipped_where_it_matches(pattern: re.Pattern[str], example: str, needed: Sequence[str]) -> None:
    """Each pattern of secrets is found by one of the parts that a text is searched for first, in any case."""

    @given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
    def anywhere(text: str) -> None:
        assert not pattern.search(text) or any(part in text.casefold() for part in needed)

    assert pattern.search(example)
    anywhere()


@given(st.text())
def test_symbols_are_what_is_no_letter_digit_or_space(answer: str) -> None:
    """The share of symbols is that of the characters that are neither alphanumeric nor space."""
    marks = sum(not (character.isalnum() or character.isspace()) for character in answer)
    assert bool(is_symbols(answer)) == (len(answer) >= 20 and 2 * marks > len(answer))


def test_arguments_of_a_call_are_redacted() -> None:
    """Personal data in the arguments of a call gives way, whatever the argument is called; names and ids stay."""
    call = {"id": "call_1", "type": "function", "function": {"name": "mail", "arguments": {"name": "a@b.org", "n": 1}}}
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    clean = rewritten(row, lambda text: redacted(text, Counter()))
    function = {"name": "mail", "arguments": {"name": "[e-mail]", "n": 1}}
    assert clean == {"messages": [{"role": "assistant", "content": "", "tool_calls": [{**call, "function": function}]}]}


def test_rows_with_other_calls_are_not_close() -> None:
    """Rows that say the same and call otherwise are compared by their calls too."""
    calls = [
        [{"type": "function", "function": {"name": "f", "arguments": {"x": x}}}] for x in ("one two", "three four")
    ]
    one, other = ({"messages": [{"role": "assistant", "content": "", "tool_calls": each}]} for each in calls)
    assert conversation(one) != conversation(other)


def test_check_digits() -> None:
    """Luhn and modulo 97 know the examples of their standards, and not their neighbours."""
    assert is_iban("GB82 WEST 1234 5698 7654 32") and not is_iban("GB82 WEST 1234 5698 7654 33")
    assert is_card("4539 1488 0343 6467") and not is_card("8273 1232 7352 0569")


def same(some: Rows, others: Rows) -> bool:
    """Whether the rows are the same, in any order."""
    return sorted(map(canonical, some)) == sorted(map(canonical, others))


JSON = {
    '{"card": 4111111111111111, "a": 1}': {"card": "[card]", "a": 1},
    '{"token": 12345, "a": [true, null]}': {"token": "[secret]", "a": [True, None]},
    '{"token": {"a": 1}, "mail": "ada@example.com"}': {"token": {"a": 1}, "mail": "[e-mail]"},
    '{"card": 4111111111111111, "half": "\\ud800 ö"}': {"card": "[card]", "half": "\ud800 ö"},
}


@pytest.mark.parametrize("text", JSON)
def test_json_stays_json(text: str) -> None:
    """An answer in JSON can be read as JSON after redaction, also where a number was redacted."""
    assert json.loads(redacted(text, Counter()).encode().decode()) == JSON[text]


ORDINARY = [
    *("price 1 000 000 000 000", "order 000123 4567"),
    *("invoice 001/2024", "part 0815-4711", "shelf 012 345", "at 1700000000004 ms", "EAN 4006381333931"),
    *("icon@2x.png", "order 1000000000000008", "9999999999999995"),
]


@pytest.mark.parametrize("text", ORDINARY)
def test_numbers_of_trade_stay(text: str) -> None:
    """Numbers of orders, invoices, parts and articles, times, and names of pictures are no personal data."""
    assert redacted(text, Counter()) == text


@pytest.mark.parametrize("mode", ["flag", "redact", "drop", "quarantine"])
def test_personal_data_by_mode(bench: Bench, mode: str) -> None:
    """Flagged rows stay as they were, redacted ones change, dropped ones are counted, others are set apart."""
    rows = [pair("Hi"), *map(pair, PRIVATE.values())]
    made = bench.curate(rows, personal_data=mode)
    kept = bench.rows(made)
    assert made.read == made.rows.rows + sum(made.dropped.values()) + (made.quarantined.rows if made.quarantined else 0)
    [report] = made.steps
    match mode:
        case "flag":
            assert same(kept, rows) and report.noted == 5
        case "redact":
            assert len(kept) == 6 and sum("[" in row["messages"][0]["content"] for row in kept) == 5
        case "drop":
            assert kept == rows[:1] and made.dropped == {"personal_data": 5}
        case "quarantine":
            assert kept == rows[:1] and made.quarantined
            assert same(load(bench.store.local(made.quarantined)), rows[1:])


def test_rows_that_redaction_makes_equal_are_duplicates(bench: Bench) -> None:
    """Rows that differ in an address alone are one row once it is redacted."""
    made = bench.curate([pair(f"I am {name}@example.com") for name in ("ada", "bob")], personal_data="redact")
    assert made.dropped == {"duplicate": 1} and made.rows.rows == 1


def test_contradictions_by_mode(bench: Bench) -> None:
    """Two answers to one question: both stay, the last one stays, or none; other questions are left alone."""
    rows = [pair("Open?", "Yes."), pair("Closed?", "Yes."), pair("Open? \n", "No."), pair("Open?", "Perhaps.")]
    assert bench.curate(rows, contradictions="report").dropped == {}
    newest = bench.curate(rows, contradictions="keep_newest")
    assert newest.dropped == {"contradiction": 2}
    assert {row["messages"][1]["content"] for row in bench.rows(newest)} == {"Yes.", "Perhaps."}
    assert bench.rows(bench.curate(rows, contradictions="drop_both")) == rows[1:2]


@pytest.mark.parametrize("answers", ["ABA", "AABA", "BA", "ABBA", "BABA"])
def test_the_newest_answer_is_the_last_in_the_source(bench: Bench, answers: str) -> None:
    """An answer that is given again later is the newest: what counts is its last duplicate."""
    made = bench.curate([pair("Open?", answer) for answer in answers], contradictions="keep_newest")
    assert bench.rows(made) == [pair("Open?", answers[-1])]
    assert made.read == made.rows.rows + sum(made.dropped.values())


def test_a_query_has_no_newest_answer(tmp_path: Path) -> None:
    """The rows of a query are sorted, so keep_newest is refused there; the password is not in the message."""
    path = "postgresql://me:hunter2@127.0.0.1/shop?query=SELECT question, answer FROM t ORDER BY time"
    spec = DatasetSpec.model_validate({"path": path, "curation": {"contradictions": "keep_newest"}})
    with pytest.raises(ConfigInvalid, match="keep_newest") as refused:
        curate(SourceRef(digest="0" * 64, path="unread"), spec, store=Store(tmp_path / "store"))
    assert "hunter2" not in str(refused.value)


def test_the_newest_answer_stays_though_the_rows_are_nearly_alike(bench: Bench) -> None:
    """Near duplicates are compared after contradictions, so an old answer never outlives the newest one."""
    for number in range(20):  # of nine of them the old answer has the lower hash
        rows = [pair(f"{LONG} {number}?", f"It is {euro} euro.") for euro in (10, 12)]
        made = bench.curate(rows, contradictions="keep_newest", near_duplicates=0.8)
        assert bench.rows(made) == rows[1:]


def test_a_longer_conversation_is_another_question(bench: Bench) -> None:
    """A question counts with all that stands before it, so a later turn is no contradiction of an earlier one."""
    first = pair("Hi", "Hello.")["messages"]
    rows = [{"messages": first}, {"messages": [*first, *pair("Hi", "You said that.")["messages"]]}]
    assert bench.curate(rows, contradictions="drop_both").rows.rows == 2


def test_near_duplicates_on_questions(bench: Bench) -> None:
    """Compared by their questions alone, rows with other answers are near duplicates; by all they say, they are not."""
    rows = [pair(LONG, "one two three four five six seven eight nine ten " * 4), pair(f"{LONG} now", "No. " * 30)]
    assert bench.curate(rows, near_duplicates=0.8).dropped == {}
    assert bench.curate(rows, near_duplicates=0.8, near_duplicates_on="question").dropped == {"near_duplicate": 1}


def test_the_order_of_the_rows_decides_nothing(bench: Bench) -> None:
    """The same rows in another order are the same artifact, unless a step asks for the order."""
    drawn = random.Random(0)
    rows = [pair(" ".join(drawn.choices(LONG.split(), k=12)), drawn.choice(["Yes.", "No."])) for _ in range(150)]
    rows += [pair(row["messages"][0]["content"] + " x", "Yes.") for row in rows[:60]] + [*BAD.values()]
    steps = {"near_duplicates": 0.7, "quality": [*BAD], "personal_data": "redact", "contradictions": "drop_both"}
    first = bench.curate(rows, **steps)
    for _ in range(3):
        drawn.shuffle(rows)
        again = bench.curate(rows, **steps)
        assert (again.rows, again.dropped) == (first.rows, first.dropped)


def test_without_steps_a_key_is_what_it_was(bench: Bench) -> None:
    """A dataset without curation has the key of a spec that knows none; a step is part of the key."""
    source = snapshot(__file__, scratch=Path())
    plain, asked = DatasetSpec(path="a"), DatasetSpec.model_validate({"path": "a", "curation": {"quality": ["echo"]}})
    assert "curation" not in plain.semantic() and asked.semantic()["curation"].semantic() == {"quality": ["echo"]}
    keys = {stage_key("curate", {"source": source, "spec": spec, "template": None}) for spec in (plain, asked)}
    assert len(keys) == 2


def test_the_order_of_a_list_is_no_part_of_a_key() -> None:
    """Languages and rules mean the same in any order, and those that are sorted have the key that they had."""
    source = snapshot(__file__, scratch=Path())

    def key(**curation: Any) -> str:
        spec = DatasetSpec.model_validate({"path": "a", "curation": curation})
        assert spec.curation.semantic() == {name: sorted(set(names)) for name, names in curation.items()}
        return stage_key("curate", {"source": source, "spec": spec, "template": None})

    assert key(languages=["en", "de", "en"]) == key(languages=["de", "en"]) != key(languages=["en"])
    assert key(quality=["repetition", "echo"]) == key(quality=["echo", "repetition"])


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["messages", "role", "content", "text", "tools", "tool_calls", "weight", "chosen", "system"])
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "poet"]), "content": st.text(max_size=40)},
    optional={"weight": json_values, "name": json_values, "tool_calls": json_values},
)
objects = st.dictionaries(fields, json_values | st.lists(turns, max_size=4), max_size=3)
lines = st.one_of(
    st.builds(lambda some: json.dumps({"messages": some}), st.lists(turns, max_size=4)),
    objects.map(json.dumps),
    json_values.map(json.dumps),
    st.text(max_size=30).map(lambda text: text.replace("\n", " ")),
)
EVERYTHING = {
    "personal_data": "quarantine",
    "quality": [*BAD],
    "languages": ["en"],
    "near_duplicates": 0.6,
    "contradictions": "keep_newest",
    "sources": [{"max_rows": 3, "weight": 1.5}],
    "curriculum": "file",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, max_size=25))
def test_rows_read_are_rows_kept_dropped_or_quarantined(bench: Bench, some: list[str]) -> None:
    """Whatever the lines of a file are: a coded error, or each row has one outcome and the counts add up."""
    fine = [json.dumps(pair(f"Where is order {number}?", "It is on its way to you.")) for number in range(3)]
    bench.path.write_text("\n".join([*fine, *some]), encoding="utf-8", errors="surrogatepass")
    spec = DatasetSpec.model_validate({"path": str(bench.path), "max_bad_rows": 1, "curation": EVERYTHING})
    try:
        made = curate(snapshot(str(bench.path), scratch=bench.path.parent), spec, store=bench.store)
    except BackpropError:
        return
    apart = made.quarantined.rows if made.quarantined else 0
    kept = made.rows.rows + (made.preferences.rows if made.preferences else 0)
    assert made.lineage and made.read == kept + apart + sum(made.dropped.values()) == made.lineage.rows
    table = pyarrow.parquet.read_table(bench.store.local(made.lineage) / "lineage.parquet")
    found = Counter(table["outcome"].to_pylist())
    assert found == Counter(kept=kept, quarantined=apart, dropped=sum(made.dropped.values()))
