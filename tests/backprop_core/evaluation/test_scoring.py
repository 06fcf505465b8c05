"""Scores against plain transformers, row by row."""

import json
from typing import Any

import pytest
import torch

from backprop_core.data import chat_encoding
from backprop_core.errors import NoRows
from backprop_core.evaluation.scoring import evaluate
from backprop_core.models.adapter_tensors import Adapter, read_adapter, write_adapter
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.refs import AdapterRef, RowsRef, Scores
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

ROWS = nano.chats(40)


@pytest.fixture(scope="module")
def store(shared: Store) -> Store:
    return shared


def lines(store: Store, scores: Scores) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.local(scores) / "scores.jsonl").read_text().splitlines()]


@torch.no_grad()
def by_hand(base: LoadedBase, index: int, row: dict[str, Any]) -> dict[str, Any]:
    """One row alone through the whole model, its log-probabilities in float64."""
    [example] = chat_encoding.encode(base.tokenizer, [row], max_length=128)
    logp = base.model(torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
    at = [position for position, label in enumerate(example.labels) if label]
    hits = [int(logp[position - 1].argmax()) == example.ids[position] for position in at]
    loss = -sum(float(logp[position - 1, example.ids[position]]) for position in at)
    return {"row": index, "loss": loss, "tokens": len(at), "correct": sum(hits), "exact": all(hits)}


def test_every_row_equals_plain_transformers(
    base: LoadedBase, store: Store, heldout: RowsRef, tuned: AdapterRef
) -> None:
    """Per row and in row order: loss, label tokens, hits and exact match of an unpadded pass of the whole model."""
    found = lines(store, evaluate(base, tuned, heldout, max_length=128, store=store))
    with adapted(base, tuned, store):
        expected = [by_hand(base, index, row) for index, row in enumerate(ROWS)]
    assert [row.pop("loss") for row in found] == pytest.approx([row.pop("loss") for row in expected], rel=1e-4)
    assert found == expected
    assert {row["exact"] for row in found} == {True, False}


def test_exact_means_greedy_decoding_writes_the_reference(
    base: LoadedBase, store: Store, heldout: RowsRef, tuned: AdapterRef
) -> None:
    """Generating greedily gives the reference answer for the rows that match exactly, and for no other."""
    scores = lines(store, evaluate(base, tuned, heldout, max_length=128, store=store))
    with adapted(base, tuned, store) as model:
        for row, score in list(zip(ROWS, scores, strict=True))[:12]:
            [example] = chat_encoding.encode(base.tokenizer, [row], max_length=128)
            head = example.ids[: example.labels.index(True)]
            labels = [token for token, label in zip(example.ids, example.labels, strict=True) if label]
            ids = torch.tensor([head])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(labels), pad_token_id=0
            )
            assert (out[0, len(head) :].tolist() == labels) == score["exact"]


def test_the_summary_is_that_of_the_rows(base: LoadedBase, store: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """Loss and accuracy are means over label tokens, exact match over rows; the adapter did learn something."""
    scores = evaluate(base, tuned, heldout, max_length=128, store=store)
    rows = lines(store, scores)
    tokens = sum(row["tokens"] for row in rows)
    assert (scores.rows, scores.tokens) == (40, tokens)
    assert scores.loss == pytest.approx(sum(row["loss"] for row in rows) / tokens)
    assert scores.token_accuracy == pytest.approx(sum(row["correct"] for row in rows) / tokens)
    assert scores.exact_match == pytest.approx(sum(row["exact"] for row in rows) / 40)
    assert scores.token_accuracy > evaluate(base, None, heldout, max_length=128, store=store).token_accuracy + 0.3


def test_the_same_cell_is_the_same_digest(base: LoadedBase, store: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """Scoring the bare base before and after an adapter gives the same bytes: the base is bitwise what it was."""
    bare = evaluate(base, None, heldout, max_length=128, store=store)
    first = evaluate(base, tuned, heldout, max_length=128, store=store)
    assert evaluate(base, None, heldout, max_length=128, store=store) == bare
    assert evaluate(base, tuned, heldout, max_length=128, store=store) == first
    assert first.digest != bare.digest


def test_dropout_is_for_training_alone(base: LoadedBase, store: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """An adapter whose config has dropout scores exactly as the same tensors without it."""
    adapter = read_adapter(store.local(tuned))
    made = []
    for dropout in (0.0, 0.5):
        with store.begin("adapter") as directory:
            write_adapter(Adapter({**adapter.config, "lora_dropout": dropout}, adapter.tensors), directory)
            ref = store.commit(directory, AdapterRef, kind="tuned", record={})
        made.append(evaluate(base, ref, heldout, max_length=128, store=store))
    assert made[0] == made[1]


def test_no_rows_is_refused(base: LoadedBase, store: Store) -> None:
    """An empty held-out set has no score."""
    with pytest.raises(NoRows):
        evaluate(base, None, nano.commit_rows(store, []), max_length=128, store=store)
