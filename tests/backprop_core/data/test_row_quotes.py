"""Quotes of a row are found however they are written, and blanked without moving a byte of anything else."""

import html
import json
import random
from collections.abc import Callable

import pytest

from backprop_core.data.row_quotes import MASK, STEP, WIDTH, Quotes, lines_of, tells

LINE = 'Frau Müller said "call +49 170 5550123", then <hung up> at 5 o\'clock'
LONG = LINE + " and so on" * 20
WAYS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": lambda text: json.dumps(text, ensure_ascii=False),
    "ascii": json.dumps,
    "json in json": lambda text: json.dumps({"text": json.dumps({"text": text})}),
    "html": html.escape,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", range(9))
def test_a_quote_is_blanked_where_it_stands(way: str, shift: int) -> None:
    """Of the line nothing is left, and all around it is what it was, at any offset."""
    before, after = "x" * shift + '{"a": ', ', "b": [1, "other text, Müller"]}'
    data = (before + WAYS[way](LINE) + after).encode()
    made = Quotes([LINE]).blanked(data)
    assert len(made) == len(data) and made.startswith(before.encode()) and made.endswith(after.encode())
    assert MASK in made and b"ller said" not in made and b"hung up" not in made and b"Frau" not in made
    assert Quotes([LINE]).hits(made) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_quote_that_is_cut_is_found(way: str) -> None:
    """At its begin, at its end or both, wherever that is, as long as enough is left."""
    for begin in range(0, len(LINE) - 40, 3):
        for end in range(begin + WIDTH + STEP, len(LINE), 5):
            data = f"({WAYS[way](LINE[begin:end])})".encode()
            left = Quotes([LINE]).blanked(data)
            assert MASK[:9] in left
            assert not any(LINE[at : at + 5].encode() in left for at in range(len(LINE) - 4)), left


def test_what_other_rows_say_too_is_no_quote() -> None:
    """A line that is like others but for a few characters is found by these; what they share is left to them."""
    mine, others = (
        "Classify this sentence as good or bad: 7731 is it",
        "Classify this sentence as good or bad: 1234 is it",
    )
    quotes = Quotes([mine])
    own = quotes.without(hit.piece for hit in quotes.hits(others.encode()))
    assert own.blanked(others.encode()) == others.encode()
    assert own.blanked(mine.encode()).strip() == MASK


def test_as_many_as_there_are_are_found() -> None:
    """Among many lines, in megabytes of other bytes: the same places as str.find says."""
    rng = random.Random(0)
    lines = [f"{rng.randrange(10**9)} is number {number}" for number in range(300)]
    parts = [rng.choice([*lines, "nothing of that", str(rng.random()) * 50]) for _ in range(3000)]
    data = "\n".join(parts).encode()
    found = {(hit.start, data[hit.start : hit.end].decode()) for hit in Quotes(lines).hits(data)}
    wanted, at = set(), 0
    for part in parts:
        wanted |= {(at, part)} if part in lines else set()
        at += len(part) + 1
    assert found == wanted


def test_names_of_our_own_are_no_quotes() -> None:
    """A row whose whole text is a status or a metric must not blank records that say the same."""
    row = {"messages": [{"role": "user", "content": "finished"}, {"role": "assistant", "content": "token_accuracy"}]}
    assert list(lines_of(row)) == []
    assert not tells("12345678") and not tells("Yes.") and tells("plum-4471") and tells("It is white.")
