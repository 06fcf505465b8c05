"""Drops rows whose last answer breaks a rule: it repeats itself, is mostly symbols, refuses, breaks off, or echoes.

Of a preference the better answer counts: the worse one may be as bad as it likes.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from backprop_core.data.preference_rows import wanted
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.steps.row_step import Finding, RowStep, dropped, last_answer, last_question
from backprop_core.data.steps.shingles import words
from backprop_core.schema.specs.curation import QualityRule

LONG = 30  # words of an answer that can repeat itself or break off
LEAST_DISTINCT = 0.5  # share of distinct word triples
MOST_SYMBOLS = 0.5  # share of characters that are no letter, digit or space
LEAST_CHARACTERS = 20  # of an answer whose symbols are counted
REFUSAL = re.compile(
    r"(?i)^\W*(?:(?:i['\u2019]?m|i am) (?:very |really |so )?sorry,? but (?:i|as)|as an ai\b|"
    r"(?:sorry,? )?(?:but )?i (?:can['\u2019]?t|cannot|am unable to|['\u2019]?m unable to|won['\u2019]?t) "
    r"(?:help|assist|answer|provide|fulfill|comply|do that)|i['\u2019]?m unable to (?:help|assist))"
)
NO_SYMBOL = re.compile(r"[\w\s]+")  # and underscores
BROKEN_OFF = re.compile(r"[\w,;(\[{\u2013-]$")
FENCE = "```"


def repeats(answer: str) -> str | None:
    """Why a text repeats itself, if it does."""
    said = words(answer)
    if len(said) < LONG:
        return None
    triples = list(zip(said, said[1:], said[2:], strict=False))
    share = len(set(triples)) / len(triples)
    return f"{100 * share:.0f} % of its word triples are distinct" if share < LEAST_DISTINCT else None


def is_symbols(answer: str) -> str | None:
    """Why a text is mostly symbols, if it is."""
    marks = len(NO_SYMBOL.sub("", answer)) + answer.count("_")
    share = marks / max(len(answer), 1)
    return f"{100 * share:.0f} % symbols" if len(answer) >= LEAST_CHARACTERS and share > MOST_SYMBOLS else None


def refuses(answer: str) -> str | None:
    """The start of an answer that refuses the question."""
    found = REFUSAL.search(answer)
    return f"starts with {found[0].strip()!r}" if found else None


def breaks_off(answer: str) -> str | None:
    """How an answer breaks off, if it does: in an open block of code, or a long one in the middle of a sentence."""
    if answer.count(FENCE) % 2:
        return "its last block of code is open"
    end = answer.rstrip()
    if FENCE in answer or "\n" in end[-80:] or len(words(answer)) < LONG:
        return None
    return f"ends with {end[-20:]!r}" if BROKEN_OFF.search(end) else None


def echoes(row: ChatRow) -> str | None:
    """Whether the answer is the question."""
    asked = words(last_question(row))
    return "the answer equals the question" if asked and asked == words(last_answer(row)) else None


RULES: Mapping[QualityRule, Callable[[ChatRow], str | None]] = {
    "repetition": lambda row: repeats(last_answer(row)),
    "symbols": lambda row: is_symbols(last_answer(row)),
    "refusal": lambda row: refuses(last_answer(row)) if "messages" in row else None,
    "truncated": lambda row: breaks_off(last_answer(row)) if "messages" in row else None,
    "echo": echoes,
}


def step(rules: Sequence[QualityRule]) -> RowStep:
    """Drops a row by the first of these rules that it breaks."""
    ordered = [rule for rule in RULES if rule in rules]

    def judge(row: ChatRow) -> Finding | None:
        answered = wanted(row)
        found = ((rule, RULES[rule](answered)) for rule in ordered if answered)
        return next((dropped(rule, detail) for rule, detail in found if detail), None)

    return lambda rows: [judge(row) for row in rows]
