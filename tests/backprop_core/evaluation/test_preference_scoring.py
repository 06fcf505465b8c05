"""Held-out preferences are scored by what the model itself finds more likely."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from backprop_core.data import chat_encoding
from backprop_core.evaluation.back_off import back_off
from backprop_core.evaluation.gate import gate
from backprop_core.evaluation.hits import hits
from backprop_core.evaluation.lambda_search import search
from backprop_core.evaluation.preference_scoring import row_score
from backprop_core.evaluation.row_score import write_scores
from backprop_core.evaluation.scoring import evaluate
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.refs import AdapterRef, Cell, Scores
from backprop_core.schema.specs import GateSpec, MergeSpec
from backprop_core.schema.specs.measures import Metric
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

WORDS = ["kettle", "lamp", "fan", "toaster", "radio", "mixer", "heater", "blender"]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def pair(word: str) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"Say {word}"}]
    return {"messages": asked, "chosen": says(f"{word}!"), "rejected": says(f"{word}, but not now")}


def thumb(word: str, good: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Say {word}"}, *says(f"{word}!")], "label": good}


PAIRS = [pair(word) for word in WORDS]
THUMBS = [thumb(word, number % 2 == 0) for number, word in enumerate(WORDS)]


def mean_log_prob(base: LoadedBase, row: dict[str, Any], answer: list[dict[str, str]]) -> float:
    """Of the answer's tokens, from the whole model's logits of this conversation alone, in float64."""
    chat = {"messages": [*row["messages"], *answer]}
    [example] = chat_encoding.encode(base.tokenizer, [chat], max_length=256)
    ids = torch.tensor(example.ids)
    with torch.no_grad():
        logits = base.model(ids[None]).logits[0].double()
    at = torch.tensor(example.labels).nonzero().flatten()
    return float(logits.log_softmax(-1)[at - 1, ids[at]].mean())


def scored(base: LoadedBase, adapter: AdapterRef | None, rows: list[dict[str, Any]], store: Store) -> Scores:
    return evaluate(base, adapter, nano.commit_rows(store, rows), max_length=256, store=store)


def test_a_pair_is_scored_by_means_per_token(base: LoadedBase, shared: Store, tuned: AdapterRef) -> None:
    """Each row agrees where the chosen answer's mean log-probability is higher; its loss is -log σ of the margin."""
    found = scored(base, tuned, PAIRS, shared)
    with adapted(base, tuned, shared):
        margins = [mean_log_prob(base, row, row["chosen"]) - mean_log_prob(base, row, row["rejected"]) for row in PAIRS]
    lines = [json.loads(line) for line in (shared.local(found) / "scores.jsonl").read_text().splitlines()]
    assert [line["correct"] == 2 for line in lines] == [margin > 0 for margin in margins]
    expected = -torch.tensor(margins).sigmoid().log()
    assert [line["loss"] / line["tokens"] for line in lines] == pytest.approx(expected.tolist(), rel=1e-4)
    assert found.token_accuracy == sum(margin > 0 for margin in margins) / len(margins)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    assert scored(base, tuned, swapped, shared).token_accuracy == pytest.approx(1 - found.token_accuracy)


def test_a_thumb_is_scored_by_the_change_since_the_base(base: LoadedBase, shared: Store, tuned: AdapterRef) -> None:
    """An answer that the adapter has learned by heart agrees with a thumb up, not with a thumb down; the base ties."""
    found, untouched = scored(base, tuned, THUMBS, shared), scored(base, None, THUMBS, shared)
    assert found.token_accuracy == 0.5 and found.exact_match == 0.5
    assert untouched.token_accuracy == 0.5 and untouched.exact_match == 0
    assert scored(base, tuned, [row for row in THUMBS if row["label"]], shared).token_accuracy == 1
    told = hits(found, "token_accuracy", shared)
    assert told.score == found.token_accuracy and told.rows == len(WORDS)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_noise_is_no_gain_over_a_tie(tmp_path: Path, metric: str) -> None:
    """Against the base's ties on 30 thumbs, margins of pure noise pass as seldom as the confidence says: 5 %.

    A clear change of all thumbs passes in every metric.
    """
    store = Store(tmp_path)
    base = of_margins([0.0] * 30, store)
    assert Cell(scores=base).score(metric) == hits(base, metric, store).score == 0.5

    def accepted(margins: list[float]) -> bool:
        row = {"a": of_margins(margins, store)}
        return gate(row, None, {"a": base}, watch=[], metric=metric, spec=GateSpec(), store=store).accepted

    noise = [np.random.default_rng(seed).normal(0, 1e-3, 30).tolist() for seed in range(40)]
    assert sum(map(accepted, noise)) <= 5  # more than 5 of 40 have a probability of 1.4 % if each has 5 %
    assert accepted([1.0] * 30)


def of_margins(margins: list[float], store: Store) -> Scores:
    """Scores as the stage `evaluate` commits them."""
    rows = [row_score(row, margin) for row, margin in enumerate(margins)]
    known = {"rows": len(rows), "tokens": 2 * len(rows), "exact_match": sum(row.exact for row in rows) / len(rows)}
    loss, points = (sum(getattr(row, name) for row in rows) / known["tokens"] for name in ("loss", "correct"))
    with store.begin("scores") as directory:
        write_scores(rows, directory / "scores.jsonl")
        record = {"margins": margins}
        found = {**known, "loss": loss, "token_accuracy": points, "preferences": True}
        return store.commit(directory, Scores, record=record, **found)


def test_answers_are_scored_as_before(base: LoadedBase, shared: Store, tuned: AdapterRef) -> None:
    """Rows with an answer are no preferences."""
    assert not scored(base, tuned, nano.chats(4), shared).preferences


def test_lambda_is_searched_by_preferences_too(base: LoadedBase, shared: Store, tuned: AdapterRef) -> None:
    """Merged with itself an adapter stays what it is, so every λ has the loss of its evaluation."""
    rows = nano.commit_rows(shared, PAIRS)
    spec = MergeSpec.model_validate({"lambda": "search", "strategy": "average"})
    found = search(base, tuned, tuned, count=2, spec=spec, heldout=[rows], max_length=256, store=shared)
    expected = evaluate(base, tuned, rows, max_length=256, store=shared).loss
    assert list(found.tried.values()) == pytest.approx([expected] * 10, rel=1e-4)


@pytest.mark.parametrize("metric", ["token_accuracy", "exact_match", "loss"])
@pytest.mark.parametrize("held_out", [PAIRS, THUMBS], ids=["pairs", "thumbs"])
def test_back_off_looks_at_preferences_too(
    base: LoadedBase, shared: Store, tuned: AdapterRef, held_out: list[dict[str, Any]], metric: str
) -> None:
    """From a candidate that is its own champion nothing is taken back, and each share scores by points."""
    rows = nano.commit_rows(shared, held_out)
    options: dict[str, Any] = {"heldout": [rows], "metric": metric, "max_length": 256, "store": shared}
    found = back_off(base, tuned, tuned, **options)
    expected = evaluate(base, tuned, rows, max_length=256, store=shared).token_accuracy
    assert found.share == 1 and list(found.tried.values()) == pytest.approx([expected] * 4)
