"""What a written answer is worth beside its reference: pure functions of two texts, each from 0 to 1."""

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
    """The text's words: lower case, without punctuation and English articles; the text itself if nothing is left.

    [SQuAD's normalisation, arXiv 1606.05250; Unicode's punctuation in place of ASCII's]
    """
    kept = "".join(c for c in text.casefold() if not unicodedata.category(c).startswith("P"))
    return [word for word in kept.split() if word not in ARTICLES] or [text.strip()]


def token_f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the reference's words [arXiv 1606.05250, section 6.1]."""
    written, wanted = Counter(words(output)), Counter(words(reference))
    return 2 * (written & wanted).total() / (written.total() + wanted.total())


def label_accuracy(output: str, reference: str) -> float:
    """1 if the answer is the reference but for case, punctuation and articles [quasi-exact match, arXiv 2211.09110]."""
    return float(words(output) == words(reference))


def contains(output: str, reference: str) -> float:
    """1 if the reference's words stand in the answer, in their order and next to each other."""
    return float(f" {' '.join(words(reference))} " in f" {' '.join(words(output))} ")


def same_match(pattern: str, output: str, reference: str) -> float:
    """1 if the pattern finds in the answer what it finds in the reference, in neither of them included."""
    return float(found(pattern, output) == found(pattern, reference))


def found(pattern: str, text: str) -> str | None:
    """What the pattern's first group matches first, or the whole of it where it has no group."""
    match = re.search(pattern, text)
    return match[min(1, match.re.groups)] if match else None


METRICS: dict[str, Metric] = {"token_f1": token_f1, "label_accuracy": label_accuracy, "contains": contains}


def rate(generations: Generations, *, metric: str, pattern: str | None, store: Store) -> Ratings:
    """Rate every answer, and commit the ratings.

    `metric` is one of METRICS, or regex, which compares what `pattern` finds. Raises InputValidationFailed if it finds
    something in no reference.
    """
    exchanges = list(read_generations(generations, store))
    if pattern is not None and not any(found(pattern, exchange["reference"]) for exchange in exchanges):
        raise InputValidationFailed(
            f"evaluation.pattern {pattern!r} is found in none of {len(exchanges)} held-out answers",
            hint="write it so that it finds what counts in them",
        )
    measure = METRICS[metric] if pattern is None else partial(same_match, pattern)
    ratings = [measure(exchange["output"], exchange["reference"]) for exchange in exchanges]
    return commit(ratings, metric, store, {"stage": "rate", "generations": generations.digest})


def read_generations(generations: Generations, store: Store) -> Iterator[dict[str, Any]]:
    """Row, messages, reference and output of every row."""
    with (store.local(generations) / "generations.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def commit(ratings: list[float], metric: str, store: Store, record: dict[str, str]) -> Ratings:
    """The ratings of all rows as an artifact."""
    with store.begin("ratings") as directory:
        lines = [canonical({"row": row, "score": score}) + "\n" for row, score in enumerate(ratings)]
        (directory / "ratings.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        score = sum(ratings) / len(ratings)
        return store.commit(directory, Ratings, record=record, metric=metric, rows=len(ratings), score=score)


def as_expected(canary: CanarySpec, output: str) -> bool:
    """Whether an answer is what a canary expects."""
    match canary.match:
        case "exact":
            return output.strip() == canary.expect.strip()
        case "regex":
            return re.search(canary.expect, output) is not None
        case "contains":
            return canary.expect.casefold() in output.casefold()
