"""The perplexity of rows under the base: that of transformers, whatever rows are in a batch with them."""

import json
import math
import random
from typing import Any

import pytest
import torch

from backprop_core.data.batching import load
from backprop_core.evaluation import scoring
from backprop_core.evaluation.perplexity import perplexities
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

ROWS = nano.chats(24)


def found(base: LoadedBase, ref: RowsRef, store: Store, **more: Any) -> dict[int, float]:
    made = perplexities(base, ref, **{"max_length": 128, **more}, store=store)
    lines = (store.local(made) / "perplexity.jsonl").read_text().splitlines()
    assert made.rows == len(lines)
    return {one["row"]: one["perplexity"] for one in map(json.loads, lines)}


def test_it_is_that_of_transformers(base: LoadedBase, store: Store) -> None:
    """Each row's perplexity is e to the mean loss of its label tokens, each row alone, in float64."""
    ref = nano.commit_rows(store, ROWS)
    ours = found(base, ref, store)
    for item in load(base, ref, max_length=128, store=store):
        ids, at = item.ids_t.long(), item.at_n.long()
        with torch.no_grad():
            chances = base.model(ids[None]).logits[0].double().log_softmax(-1)
        loss = -chances[at - 1, ids[at]].mean()
        assert ours[item.row] == pytest.approx(math.exp(loss), rel=1e-3)


def test_batch_size_and_order_change_nothing(base: LoadedBase, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row alone in its batch, among many, or in another order has the same perplexity, to the last digit kept."""
    shuffled = random.Random(0).sample(range(len(ROWS)), len(ROWS))
    plain = found(base, nano.commit_rows(store, ROWS), store)
    other = nano.commit_rows(store, [ROWS[row] for row in shuffled])
    for budget in (1, 300, 8192):
        monkeypatch.setattr(scoring, "TOKENS", budget)
        again = found(base, other, store)
        assert {shuffled[row]: value for row, value in again.items()} == plain


def test_a_row_that_is_too_long_has_none(base: LoadedBase, store: Store) -> None:
    """A row whose answer does not fit has no perplexity, and the others do."""
    long = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "no " * 500}]}
    ref = nano.commit_rows(store, [ROWS[0], long, ROWS[1]])
    assert found(base, ref, store, max_length=Limit(tokens=128, too_long="drop")).keys() == {0, 2}
