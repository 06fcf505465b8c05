"""Near duplicates are found as brute force finds them, and nothing is dropped that is not close to a kept row."""

import random
import re
from itertools import combinations
from pathlib import Path

import pytest

from backprop_core.data.steps.near_duplicates import Near, NearDuplicates, width

WORDS = ["invoice", "order", "refund", "account", "password", "reset", "shipping", "delay", "customer", "error"]


def corpus(count: int, seed: int = 0) -> list[str]:
    """Texts, of which every second one is an earlier one with up to three words changed."""
    drawn = random.Random(seed)
    made: list[list[str]] = []
    for number in range(count):
        text = [f"{drawn.choice(WORDS)}{drawn.randrange(30)}" for _ in range(drawn.randrange(8, 40))]
        if number % 2:
            text = list(drawn.choice(made[-50:]))
            for _ in range(drawn.randrange(4)):
                text[drawn.randrange(len(text))] = drawn.choice(WORDS)
        made.append(text)
    return [" ".join(text) for text in made]


def triples(text: str) -> set[tuple[str, ...]]:
    said = re.findall(r"\w+", text.lower())
    return {*zip(said, said[1:], said[2:], strict=False)} or {tuple(said)}


def jaccard(one: str, other: str) -> float:
    """By Python sets of words, not by hashes."""
    a, b = triples(one), triples(other)
    return len(a & b) / len(a | b)


def found(texts: list[str], threshold: float, scratch: Path, fixed: int | None = None) -> list[Near]:
    near = NearDuplicates(scratch, threshold, fixed=fixed)
    for start in range(0, len(texts), 100):
        near.add(texts[start : start + 100])
    return list(near.found())


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_brute_force_finds_no_more(tmp_path: Path, threshold: float) -> None:
    """At least 95 % of the close pairs lose a row, each to a kept one that is close, and similarities are exact."""
    texts = corpus(600)
    drops = found(texts, threshold, tmp_path)
    close = [(a, b) for a, b in combinations(range(len(texts)), 2) if jaccard(texts[a], texts[b]) >= threshold]
    gone = {near.row for near in drops}
    assert len(close) > 50
    assert sum(a in gone or b in gone for a, b in close) >= 0.95 * len(close)
    for near in drops:
        assert near.kept < near.row and near.kept not in gone
        assert near.similarity == jaccard(texts[near.row], texts[near.kept]) >= threshold


def test_unlike_rows_are_all_kept(tmp_path: Path) -> None:
    """Negative control: texts of other words, texts without words and empty ones are close to none."""
    texts = [*(f"{number} a{number} b{number} c{number}" for number in range(200)), "", "", "!!!", "!!!", "?"]
    assert found(texts, 0.5, tmp_path) == []


def test_a_chain_ends_at_a_kept_row(tmp_path: Path) -> None:
    """What is close only to a dropped row is kept: a chain of small changes keeps some rows."""
    text = [f"w{number}" for number in range(40)]
    chain = []
    for number in range(40):
        chain.append(" ".join(text))
        text[number] = f"x{number}"
    drops = found(chain, 0.7, tmp_path)
    assert drops and all(jaccard(chain[near.row], chain[near.kept]) >= 0.7 for near in drops)
    kept = sorted({*range(40)} - {near.row for near in drops})
    assert len(kept) > 4


def test_fixed_rows_stay(tmp_path: Path) -> None:
    """Rows to compare with are never dropped, not even beside their twins; others are compared with them alone."""
    texts = ["one two three four five", "one two three four five", "six seven eight nine", "six seven eight nine"]
    assert found(texts, 0.8, tmp_path, fixed=2) == []
    assert [near.row for near in found([*texts, texts[0]], 0.8, tmp_path, fixed=2)] == [4]


def test_scripts_without_spaces(tmp_path: Path) -> None:
    """Japanese and Chinese texts are compared by characters: one other character of twenty leaves two rows close."""
    text = "東京都の天気は今日もとても良いですねそうですね"
    near, far = text.replace("良", "悪"), "大阪の電車は明日まで動かないそうです困りました"
    assert [one.row for one in found([text, far, near], 0.6, tmp_path)] == [2]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_a_pair_at_the_threshold_is_found(threshold: float) -> None:
    """The bands are chosen so that a pair at the threshold is missed in less than one of a hundred cases."""
    bands = 128 // width(threshold)
    assert (1 - threshold ** width(threshold)) ** bands <= 0.01
