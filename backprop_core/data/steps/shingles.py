"""Turns texts into sets of hashed shingles: a few words in a row, in lower case; a short text is one shingle.

In scripts without spaces between words, each character counts as a word. The Jaccard similarity of two texts is that
of their sets. Hashes are 64 bits, so that two shingles share one in about one of 10^19 pairs.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_formats import ChatRow
from backprop_core.schema.specs.curation import ComparedPart
from backprop_core.store.cache_keys import canonical

WIDTH = 3  # words of a shingle
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(r"\w+")
WORD_OR_CHARACTER = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 over the golden ratio
MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3
HALF = np.uint64(32)


class Shingles(NamedTuple):
    """The distinct shingles of several texts, flat: those of text i are hashes[starts[i] : starts[i + 1]], sorted."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return (WORD if text.isascii() else WORD_OR_CHARACTER).findall(text.lower())


class Runs(NamedTuple):
    """For each word of several texts: its text, the hash of the words from there on, and how many are left in it."""

    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    left: NDArray[np.int64]


def runs(texts: Sequence[str], width: int) -> Runs:
    """The runs of `width` words of each text; at its end they are shorter."""
    from rensa import RMinHash  # type: ignore[import-untyped]

    said = list(map(words, texts))
    sizes = np.fromiter(map(len, said), np.int64, len(said))
    hashes = np.fromiter(chain.from_iterable(RMinHash.hash_token_sets(said)), np.uint64, int(sizes.sum()))
    rows = np.repeat(np.arange(len(said)), sizes)
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(hashes))  # words from here to the end of the text
    mixed = np.zeros(len(hashes), np.uint64)
    for place, factor in enumerate(np.multiply.accumulate(np.full(width, FACTOR))):
        here = np.zeros(len(hashes), np.uint64)
        here[: max(len(hashes) - place, 0)] = hashes[place:]
        mixed += np.where(left > place, here * factor, np.uint64(0))
    return Runs(rows, (mixed ^ (mixed >> HALF)) * MIX, left)


def shingles(texts: Sequence[str], width: int = WIDTH) -> Shingles:
    """The shingles of `width` words of each text; a text without words has none."""
    rows, hashes, left = runs(texts, width)
    whole = (left >= width) | (np.diff(rows, prepend=-1) != 0)
    return distinct(rows[whole], hashes[whole], len(texts))


def distinct(rows: NDArray[np.int64], hashes: NDArray[np.uint64], count: int) -> Shingles:
    """Sort the hashes of each of `count` rows, without repetitions."""
    order = np.lexsort([hashes, rows])
    rows, hashes = rows[order], hashes[order]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows[new], minlength=count))])
    return Shingles(hashes[new], starts.astype(np.int64))


def turns_of(row: ChatRow) -> list[ChatRow]:
    """The turns of a conversation, or of a question and both of its answers."""
    return [*row["messages"], *row.get("chosen", ()), *row.get("rejected", ())]


def spoken(row: ChatRow) -> str:
    """What the turns of a row say."""
    return str(row["text"]) if "text" in row else "\n".join(turn["content"] for turn in turns_of(row))


def conversation(row: ChatRow) -> str:
    """What the turns of a row say and think, and their calls as JSON."""
    return str(row["text"]) if "text" in row else "\n".join(map(whole, turns_of(row)))


def whole(turn: ChatRow) -> str:
    """A turn's text, thoughts and calls."""
    calls = canonical([call["function"] for call in turn["tool_calls"]]) if "tool_calls" in turn else ""
    return "\n".join(filter(None, [turn.get("reasoning_content", ""), turn["content"], calls]))


def text_on(part: ComparedPart) -> Callable[[ChatRow], str]:
    """What to compare of a row."""
    return conversation if part == "conversation" else question


def question(row: ChatRow) -> str:
    """The texts before a row's last answer; empty for raw text."""
    turns = row.get("messages", [])
    if "chosen" in row:
        return "\n".join(map(whole, turns))
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    return "\n".join(map(whole, turns[:last]))
