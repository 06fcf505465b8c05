"""Models with different tokenizers are compared by the bytes of the answers, row by row, or not at all."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backprop_core.errors import NoRows
from backprop_core.evaluation.bits_per_byte import METRIC, answer_bytes, per_byte
from backprop_core.evaluation.gate import gate
from backprop_core.evaluation.hits import hits
from backprop_core.evaluation.row_score import RowScore, commit
from backprop_core.evaluation.scored_by_both import scored_by_both
from backprop_core.schema.refs import ByteScores, RowsRef, Scores
from backprop_core.schema.specs import GateSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

ANSWERS = ["yes", "größer", "a much longer answer", "no"] * 5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def rows(store: Store) -> RowsRef:
    said = [
        {"messages": [{"role": "user", "content": f"{place}?"}, {"role": "assistant", "content": answer}]}
        for place, answer in enumerate(ANSWERS)
    ]
    return nano.commit_rows(store, said)


def scored(store: Store, losses: Sequence[float | None], tokens: int) -> Scores:
    """What `evaluate` commits of rows with these losses in nats, each of as many tokens; None for a row left out."""
    lines = [
        {"row": row, "loss": loss, "tokens": tokens, "correct": tokens - (row % 2), "exact": row % 2 == 0}
        for row, loss in enumerate(losses)
        if loss is not None
    ]
    with store.begin("scores") as directory:
        (directory / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        fields = {"tokens": tokens * len(lines), "loss": 1.0, "token_accuracy": 0.5, "exact_match": 0.5}
        return store.commit(directory, Scores, record={}, rows=len(lines), **fields)


def judged(store: Store, candidate: Any, champion: Any, base: Any, metric: str) -> Any:
    row = [{"a": one} for one in (candidate, champion, base)]
    return gate(*row, watch=[], metric=metric, spec=GateSpec(), store=store)


def test_bits_per_byte_are_those_of_the_whole_text(store: Store, rows: RowsRef) -> None:
    """Σ nats / ln 2 / Σ UTF-8 bytes of the answers, by numpy; the number of tokens does not matter."""
    losses = np.linspace(0.5, 9, len(ANSWERS))
    few, many = (scored(store, losses.tolist(), tokens) for tokens in (2, 11))
    found = [per_byte(*pair, rows, store=store) for pair in ((few, many), (many, few))]
    sizes = np.array([len(answer.encode()) for answer in ANSWERS], np.float64)
    wanted = losses.sum() / np.log(2) / sizes.sum()
    assert [one.bits for one in found] == pytest.approx([wanted, wanted], rel=1e-12)
    assert found[0].bytes == sizes.sum() and found[0].rows == len(ANSWERS)
    own = hits(found[0], METRIC, store)
    assert own.score == pytest.approx(-wanted, rel=1e-12) and (own.all_r == sizes).all()


def test_tokens_of_two_tokenizers_are_not_compared(store: Store, rows: RowsRef) -> None:
    """The gate refuses token accuracies of two tokenizations; by bytes it accepts the better and rejects the worse."""
    good, bad = ([loss] * len(ANSWERS) for loss in (1.0, 6.0))
    few, many = scored(store, good, 2), scored(store, bad, 11)
    with pytest.raises(AssertionError, match="two different held-out sets"):
        judged(store, few, many, many, "token_accuracy")
    better, worse = per_byte(few, many, rows, store=store), per_byte(many, few, rows, store=store)
    accepted, rejected = judged(store, better, worse, worse, METRIC), judged(store, worse, better, worse, METRIC)
    assert accepted.accepted and accepted.metric == METRIC and not rejected.accepted
    assert "rose by" in rejected.reason and rejected.tasks[0].rows == len(ANSWERS)


def test_a_row_counts_only_if_both_models_have_scored_it(store: Store, rows: RowsRef) -> None:
    """A row that one tokenizer makes too long is left out for both, so the two sets of rows are the same."""
    one = scored(store, [1.0] * len(ANSWERS), 3)
    other = scored(store, [None, *[2.0] * (len(ANSWERS) - 1)], 5)
    found = [per_byte(*pair, rows, store=store) for pair in ((one, other), (other, one))]
    kept = [[line["row"] for line in lines(store, each)] for each in found]
    assert kept[0] == kept[1] == list(range(1, len(ANSWERS)))
    assert judged(store, found[0], found[1], found[1], METRIC).accepted
    with pytest.raises(NoRows, match="no held-out row fits both"):
        per_byte(one, scored(store, [None] * len(ANSWERS), 5), rows, store=store)


def agreeing(store: Store, points: Sequence[int | None]) -> Scores:
    """What `evaluate` commits of preferences with these points of 2; None for one that is too long."""
    found = [RowScore(row=row, loss=1, tokens=2, correct=one) for row, one in enumerate(points) if one is not None]
    return commit(found, {}, preferences=True, store=store)


def test_a_preference_counts_only_if_both_models_have_scored_it(store: Store) -> None:
    """Each model leaves out another row, so as many are left: they are paired by number, or the gate refuses them.

    The expected scores are those of the rows that both have, by hand.
    """
    good, bad = [0, None, *[2] * 18], [2, 0, None, *[0] * 17]
    one, other = agreeing(store, good), agreeing(store, bad)
    with pytest.raises(AssertionError, match="two different held-out sets"):
        judged(store, one, other, other, "token_accuracy")
    ours, theirs = scored_by_both(one, other, store=store), scored_by_both(other, one, store=store)
    kept = [(mine, rival) for mine, rival in zip(good, bad, strict=True) if None not in (mine, rival)]
    assert (ours.rows, theirs.rows) == (len(kept), len(kept)) == (18, 18)
    assert (ours.token_accuracy, theirs.token_accuracy) == (17 / 18, 1 / 18) and ours.preferences
    report = judged(store, ours, theirs, theirs, "bits_per_byte")
    assert report.accepted and report.tasks[0].difference == pytest.approx(16 / 18)
    with pytest.raises(NoRows, match="no held-out row fits both"):
        scored_by_both(one, agreeing(store, [None, 2]), store=store)


def test_what_both_have_scored_stays_as_it_is(store: Store) -> None:
    """Where neither leaves a row out, the scores are those of `evaluate`, to the byte."""
    one, other = agreeing(store, [2, 1, 0, 2]), agreeing(store, [0, 0, 1, 2])
    same = scored_by_both(one, other, store=store)
    files = [(store.local(each) / "scores.jsonl").read_bytes() for each in (one, same)]
    assert files[0] == files[1]
    assert one.model_dump(exclude={"digest"}) == same.model_dump(exclude={"digest"})


def test_an_exact_answer_is_exact_in_any_tokens(store: Store, rows: RowsRef) -> None:
    """Exact match counts whole rows, also of two tokenizers."""
    one, other = scored(store, [1.0] * len(ANSWERS), 3), scored(store, [1.0] * len(ANSWERS), 5)
    own = hits(per_byte(one, other, rows, store=store), "exact_match", store)
    assert own.score == 0.5 and own.all_r.tolist() == [1] * len(ANSWERS)


def lines(store: Store, scores: ByteScores) -> list[dict[str, Any]]:
    text = (store.local(scores) / ByteScores.FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("row", "size"),
    [
        ({"text": "größer"}, 8),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ab"}]}, 2),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}, 1),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "not learned", "weight": 0},
                    {"role": "user", "content": "and?"},
                    {"role": "assistant", "content": "abc", "reasoning_content": "de"},
                ]
            },
            5,
        ),
    ],
)
def test_the_bytes_of_a_row_are_those_of_what_it_teaches(row: dict[str, Any], size: int) -> None:
    """Answers with their reasoning, or raw text, in UTF-8; never none, as bits are divided by them."""
    assert answer_bytes(row) == size and math.isfinite(1 / answer_bytes(row))
