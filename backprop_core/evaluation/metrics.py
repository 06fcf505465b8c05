"""Metrics of generated answers (token_f1, label_accuracy, contains, regex): from 0 to 1, compared to a reference."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import Generations, Ratings
from backprop_core.schema.specs import CanarySpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

ARTICLES = {"a", "an", "the"}
Metric = Callable[[str, str], float]


def words(text: str) -> list[str]:
    """The text's words in lower case, without punctuation and English articles; the text itself if none is left.

    [SQuAD's normalization, arXiv 1606.05250, with Unicode punctuation instead of ASCII]
    """
    kept = "".join(c for c in text.casefold() if not unicodedata.category(c).startswith("P"))
    return [word for word in kept.split() if word not in ARTICLES] or [text.strip()]


def token_f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the reference's words [arXiv 1606.05250, section 6.1]."""
    written, wanted = Counter(words(output)), Counter(words(reference))
    return 2 * (written & wanted).total() / (written.total() + wanted.total())


def label_accuracy(output: str, reference: str) -> float:
    """1 if answer and reference are equal up to case, punctuation, articles [quasi-exact match, arXiv 2211.09110]."""
    return float(words(output) == words(reference))


def contains(output: str, reference: str) -> float:
    """1 if the answer contains the reference's words, in order and adjacent."""
    return float(f" {' '.join(words(reference))} " in f" {' '.join(words(output))} ")


def same_match(pattern: str, output: str, reference: str) -> float:
    """1 if the pattern finds the same in answer and reference, or nothing in both."""
    return float(found(pattern, output) == found(pattern, reference))


def found(pattern: str, text: str) -> str | None:
    """The first match of the pattern's first group, or of the whole pattern if it has no group."""
    match = re.search(pattern, text)
    return match[min(1, match.re.groups)] if match else None


METRICS: dict[str, Metric] = {"token_f1": token_f1, "label_accuracy": label_accuracy, "contains": contains}


def rate(generations: Generations, *, metric: str, pattern: str | None, store: Store) -> Ratings:
    """Rate every answer, and commit the ratings.

    `metric` is one of METRICS, or regex, which compares the matches of `pattern`. Raises InputValidationFailed if the
    pattern matches no reference.
    """
    exchanges = list(read_generations(generations, store))
    if pattern is not None and not any(found(pattern, exchange["reference"]) for exchange in exchanges):
        raise InputValidationFailed(
            f"evaluation.pattern {pattern!r} matches none of {len(exchanges)} held-out answers",
            hint="change the pattern so that it matches the important part of an answer",
        )
    measure = METRICS[metric] if pattern is None else partial(same_match, pattern)
    ratings = [measure(exchange["output"], exchange["reference"]) for exchange in exchanges]
    return commit(ratings, metric, store, {"stage": "rate", "generations": generations.digest})


def read_generations(generations: Generations, store: Store) -> Iterator[dict[str, Any]]:
    """Read row, messages, reference and output of every row."""
    with (store.local(generations) / "generations.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def commit(ratings: list[float], metric: str, store: Store, record: dict[str, str]) -> Ratings:
    """Commit the ratings of all rows as an artifact."""
    with store.begin("ratings") as directory:
        lines = [canonical({"row": row, "score": score}) + "\n" for row, score in enumerate(ratings)]
        (directory / "ratings.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        score = sum(ratings) / len(ratings)
        return store.commit(directory, Ratings, record=record, metric=metric, rows=len(ratings), score=score)


def as_expected(canary: CanarySpec, output: str) -> bool:
    """Whether an answer passes a canary."""
    match canary.match:
        case "exact":
            return output.strip() == canary.expect.strip()
        case "regex":
            return re.search(canary.expect, output) is not None
        case "contains":
            return canary.expect.casefold() in output.casefold()
