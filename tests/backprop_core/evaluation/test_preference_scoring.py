"""Held-out preferences are scored by what the model itself finds more likely."""

import json
from typing import Any

import pytest
import torch

from backprop_core.data import chat_encoding
from backprop_core.evaluation.back_off import back_off
from backprop_core.evaluation.hits import hits
from backprop_core.evaluation.lambda_search import search
from backprop_core.evaluation.scoring import evaluate
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.refs import AdapterRef, Scores
from backprop_core.schema.specs import MergeSpec
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


def test_back_off_looks_at_preferences_too(base: LoadedBase, shared: Store, tuned: AdapterRef) -> None:
    """From a candidate that is its own champion nothing is taken back, and each share scores as its evaluation."""
    rows = nano.commit_rows(shared, PAIRS)
    options: dict[str, Any] = {"heldout": [rows], "metric": "token_accuracy", "max_length": 256, "store": shared}
    found = back_off(base, tuned, tuned, **options)
    expected = evaluate(base, tuned, rows, max_length=256, store=shared).token_accuracy
    assert found.share == 1 and list(found.tried.values()) == pytest.approx([expected] * 4)
