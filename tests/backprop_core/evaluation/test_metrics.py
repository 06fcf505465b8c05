"""What an answer is worth: each metric on texts done by hand, and what its row-wise file says."""

import json

import pytest

from backprop_core.errors import InputValidationFailed
from backprop_core.evaluation.metrics import as_expected, contains, label_accuracy, rate, same_match, token_f1
from backprop_core.schema.refs import FileAnswer, Generations
from backprop_core.schema.specs import CanarySpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical


@pytest.mark.parametrize(
    ("output", "reference", "f1", "label", "inside"),
    [
        ("The cat sat.", "cat sat", 1, 1, 1),
        ("a cat sat down", "the cat sat", 4 / 5, 0, 1),  # 2 of 3 words right, 2 of 2 found
        ("sat cat", "cat sat", 1, 0, 0),
        ("", "cat", 0, 0, 0),
        ("cats", "cat", 0, 0, 0),
        ("cat cat cat", "cat", 1 / 2, 0, 1),
        ("ROUTE: Billing!", "route billing", 1, 1, 1),
        ("?!", "?!", 1, 1, 1),
        ("!", "?", 0, 0, 0),
        ("«ÄRGER»", "ärger", 1, 1, 1),
    ],
)
def test_two_texts(output: str, reference: str, f1: float, label: float, inside: float) -> None:
    """Case, punctuation and articles do not count; order does but for F1; a word is a word."""
    assert token_f1(output, reference) == pytest.approx(f1)
    assert (label_accuracy(output, reference), contains(output, reference)) == (label, inside)


def test_a_pattern_compares_what_it_finds() -> None:
    """The first group, or the whole match; found in neither is the same, found in one only is not."""
    assert same_match(r"= *(\d+)", "so it is =42.", "= 42") == 1
    assert same_match(r"= *(\d+)", "= 41", "= 42") == 0
    assert same_match(r"\d+", "none", "no number") == 1
    assert same_match(r"\d+", "none", "7") == 0


@pytest.mark.parametrize(
    ("match", "expect", "said", "passed"),
    [
        ("contains", "Paris", "It is PARIS.", True),
        ("contains", "Paris", "Rome", False),
        ("exact", "Paris", " Paris\n", True),
        ("exact", "Paris", "paris", False),
        ("regex", r"^\d{2}$", "42", True),
        ("regex", r"^\d{2}$", "421", False),
    ],
)
def test_canaries(match: str, expect: str, said: str, passed: bool) -> None:
    """What a canary expects: contained, case aside; exactly; or matched."""
    assert as_expected(CanarySpec(prompt="p", expect=expect, match=match), said) == passed


def test_a_pattern_has_to_compile() -> None:
    """A canary whose expression is broken is refused where it is written."""
    with pytest.raises(ValueError, match="not a valid regular expression"):
        CanarySpec(prompt="p", expect="(", match="regex")


def written(store: Store, pairs: list[tuple[str, str]]) -> Generations:
    with store.begin("generations") as directory:
        lines = [canonical({"row": i, "output": o, "reference": r}) + "\n" for i, (o, r) in enumerate(pairs)]
        (directory / "generations.jsonl").write_text("".join(lines), encoding="utf-8")
        return store.commit(directory, Generations, record={}, rows=len(pairs), stopped=0)


def test_the_ratings_of_all_rows_are_an_artifact(tmp_path) -> None:
    """A line a row, their mean in the ref; the same answers are the same digest; line separators stay in their row."""
    store = Store(tmp_path)
    answers = written(store, [("a cat", "cat"), ("dog\u2028", "cat")])
    ratings = rate(answers, metric="token_f1", pattern=None, store=store)
    lines = (store.local(ratings) / "ratings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"row": 0, "score": 1.0}, {"row": 1, "score": 0.0}]
    assert (ratings.rows, ratings.score, ratings.metric) == (2, 0.5, "token_f1")
    assert rate(answers, metric="token_f1", pattern=None, store=store) == ratings
    assert rate(answers, metric="regex", pattern="[cd]", store=store).score == 0.5


def test_a_pattern_that_finds_nothing_is_refused(tmp_path) -> None:
    """An expression that is in no reference would call everything right."""
    store = Store(tmp_path)
    with pytest.raises(InputValidationFailed, match="none of 1"):
        rate(written(store, [("1", "cat")]), metric="regex", pattern=r"\d", store=store)


@pytest.mark.parametrize(
    ("answer", "same"),
    [("a\n  b\n", True), (" a\n  b", True), ("a\nb", False), ("  a\n  b", False), ("\ta\n  b", False)],
)
def test_an_answer_with_other_indentation_is_another(answer, same):
    """A file's answer is the model's if it is so word for word, indentation included, but for whitespace at its end."""
    assert FileAnswer(prompt="p", answer=answer, reference="a\n  b", stopped=True).same is same
