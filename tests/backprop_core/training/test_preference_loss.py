"""The losses of preferences are TRL's, whatever the micro-batches."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from backprop_core.data.batching import Item, by_budget
from backprop_core.data.log_probs import log_probs
from backprop_core.data.preference_items import Pair, Rating, Units, asked
from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import PreferenceLoss, PreferenceSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import objective
from backprop_core.training.distributed import ALONE
from backprop_core.training.objective import PreferenceObjective
from backprop_core.training.preference_loss import odds_ratio
from backprop_core.training.reference import reference_log_probs
from tests.backprop_core import nano

SEED = 5  # with which the divergence is positive
WORDS = ["kettle", "lamp", "fan", "toaster", "radio"]
SPEC = PreferenceSpec(beta=0.3, good_weight=1.5, bad_weight=0.75)  # as in tests.backprop_core.trl_losses
Batch = dict[str, list[list[int]] | list[bool]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(word: str) -> dict[str, Any]:
    """A pair with answers of different lengths, after an answer that is not judged."""
    before = [user("Hello"), says("Hi there."), user(f"Say {word}")]
    return {"messages": before, "chosen": [says(f"{word}!")], "rejected": [says(f"The {word}, no.")]}


def rating(word: str, good: bool) -> dict[str, Any]:
    return {"messages": [user(f"Say {word}"), says(f"{word}!" if good else f"No {word} here")], "label": good}


PAIRS = [pair(word) for word in WORDS]
RATINGS = [rating(word, good) for word, good in zip(WORDS, [True, False, True, True, False], strict=True)]


@pytest.fixture(scope="module")
def trained_path(tmp_path_factory: pytest.TempPathFactory, path: Path) -> Path:
    """The base after some training: near it, and not equal."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("trained")
    model.save_pretrained(directory)
    nano.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def trained(trained_path: Path) -> LoadedBase:
    return load(trained_path, precision="fp32", device="cpu")


def of_rows(
    trained: LoadedBase, reference: LoadedBase, rows: RowsRef, store: Store, loss: PreferenceLoss
) -> tuple[Units, PreferenceObjective]:
    """The examples of rows, and their objective, compared with the reference."""
    spec = TrainSpec(max_length=256, preference=SPEC.model_copy(update={"loss": loss}))
    known = reference_log_probs(reference, None, rows, loss=loss, max_length=spec.limit, store=store)
    units, made = objective.load(trained, rows, spec, known, store)
    assert isinstance(units, Units) and isinstance(made, PreferenceObjective)
    return units, made


def step(base: LoadedBase, made: PreferenceObjective, budget: int) -> list[float]:
    """The loss of one step with all examples, and the norm of its gradient on one weight."""
    every = list(range(len(made.units)))
    weight = base.model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    made.begin(every)
    assert made.look(every, budget, ALONE) == []
    total = 0.0
    for indices in made.micro_batches(every, budget):
        part = made.part(indices)
        part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
    norm = weight.grad.norm().item()
    weight.grad = None
    weight.requires_grad_(False)
    return [total, norm]


def padded(items: list[Item], prefix: str = "") -> Batch:
    """Examples as TRL's trainers take them."""
    width = max(map(len, items))
    ids, seen, learned = (np.zeros((len(items), width), np.int64) for _ in range(3))
    for row, item in enumerate(items):
        ids[row, : len(item)], seen[row, : len(item)] = item.ids_t, 1
        learned[row, item.at_n] = 1
    named = {"input_ids": ids, "attention_mask": seen, "completion_mask": learned}
    return {f"{prefix}{name}": values.tolist() for name, values in named.items()}


def of_trl(trained: Path, reference: Path, batches: dict[str, Batch], scratch: Path) -> dict[str, list[float]]:
    """TRL's losses of the same batches."""
    file = scratch / "batches.json"
    file.write_text(json.dumps(batches), encoding="utf-8")
    command = [sys.executable, "-m", "tests.backprop_core.trl_losses", str(trained), str(reference), str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_losses_and_gradients_are_trls(
    trained: LoadedBase, trained_path: Path, base: LoadedBase, path: Path, store: Store, tmp_path: Path
) -> None:
    """DPO, KTO and ORPO equal what TRL's trainers compute of the same batch, to 1e-5, and so do their gradients.

    ORPO's likelihood is that of the chosen answers; TRL's own adds the tokens of the questions.
    """
    judged, rated = nano.commit_rows(store, PAIRS), nano.commit_rows(store, RATINGS)
    units, dpo = of_rows(trained, base, judged, store, "dpo")
    ratings, kto = of_rows(trained, base, rated, store, "kto")
    _, orpo = of_rows(trained, base, judged, store, "orpo")
    sides = [[unit.sides[side] for unit in (*units, *ratings) if isinstance(unit, Pair)] for side in (0, 1)]
    known = [unit for unit in ratings if isinstance(unit, Rating)]
    expected = of_trl(
        trained_path,
        path,
        {
            "dpo": padded([*sides[0], *sides[1]]),
            "kto": {
                **padded([unit.answer for unit in known]),
                **padded([unit.other for unit in known], "KL_"),
                "label": [unit.good for unit in known],
            },
        },
        tmp_path,
    )
    found = {name: step(trained, made, 10_000) for name, made in (("dpo", dpo), ("kto", kto), ("orpo", orpo))}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-6), name
    assert kto.divergence > 0, "otherwise the estimate is not compared"
    assert abs(found["dpo"][0] - math.log(2)) > 1e-3, "otherwise the reference is not compared"


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_micro_batches_do_not_change_the_step(
    trained: LoadedBase, base: LoadedBase, store: Store, loss: PreferenceLoss
) -> None:
    """With answers, pairs and ratings in one step: the same loss and gradient, one at a time or all at once."""
    _, made = of_rows(trained, base, nano.commit_rows(store, [*PAIRS, *nano.chats(5), *RATINGS]), store, loss)
    whole, divided = step(trained, made, 10_000), step(trained, made, 16)
    assert divided == pytest.approx(whole, rel=1e-5)
    assert len(made.micro_batches(range(len(made.units)), 16)) == len(made.units)


def test_a_mixed_step_is_the_mean_of_its_examples(trained: LoadedBase, base: LoadedBase, store: Store) -> None:
    """A step of s answers and p preferences is (s · their mean per token + weight · p · their mean) / (s + p)."""
    chats, parts = nano.chats(6), {}
    for name, rows in {"chats": chats, "pairs": PAIRS[:3], "mixed": [*PAIRS[:3], *chats]}.items():
        parts[name] = step(trained, of_rows(trained, base, nano.commit_rows(store, rows), store, "dpo")[1], 10_000)[0]
    assert parts["mixed"] == pytest.approx((6 * parts["chats"] + 3 * parts["pairs"]) / 9, rel=1e-5)


def test_only_the_judged_answer_counts(base: LoadedBase, store: Store) -> None:
    """The label tokens of a pair are those of its answers alone, also where the question has answers."""
    units, _ = of_rows(base, base, nano.commit_rows(store, PAIRS[:1]), store, "dpo")
    [unit] = units
    assert isinstance(unit, Pair)
    spoken = [base.tokenizer.decode(side.ids_t[side.at_n]) for side in unit.sides]
    assert spoken == ["kettle!<|im_end|>", "The kettle, no.<|im_end|>"]


def test_other_answers_are_of_another_row() -> None:
    """KTO's divergence compares each question with an answer to another one, where there is one, as TRL rotates."""
    ratings = asked(RATINGS, "kto")
    assert [one.sides[1]["messages"][-1] for one in ratings] == [
        row["messages"][-1] for row in [RATINGS[-1], *RATINGS[:-1]]
    ]
    both = asked(PAIRS[:2], "kto")
    assert [one.good for one in both] == [True, False, True, False]
    assert [one.sides[1]["messages"][-1] for one in both] == [
        PAIRS[number][side][0] for number in (1, 0) for side in ("chosen", "rejected")
    ]


def test_a_preference_that_does_not_fit_is_left_out_whole(base: LoadedBase, store: Store) -> None:
    """If one of two answers is too long, neither is trained, and one row is counted."""
    long = {**pair("lamp"), "rejected": [says("no " * 300)]}
    units, _ = of_rows(base, base, nano.commit_rows(store, [pair("fan"), long]), store, "dpo")
    assert [unit.row for unit in units] == [0]
    assert units.left_out == 1


def test_log_probs_in_parts(base: LoadedBase, store: Store) -> None:
    """Seven label tokens at a time: the same log-probabilities and gradient to 1e-6."""
    units, _ = of_rows(base, base, nano.commit_rows(store, PAIRS), store, "dpo")
    items = [side for unit in units if isinstance(unit, Pair) for side in unit.sides]
    weight, gradients = base.model.model.layers[0].mlp.up_proj.weight.requires_grad_(True), []
    for options in ({}, {"logits": 7 * base.vocabulary}):
        log_probs(base, items, **options).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(weight.grad.clone())
        weight.grad = None
    weight.requires_grad_(False)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_the_odds_ratio_of_certain_answers_is_finite() -> None:
    """An answer with probability 1 by rounding makes neither the loss nor its gradient infinite."""
    certain = torch.zeros(1, requires_grad=True)
    loss = odds_ratio(certain, torch.full((1,), -1e-3)) + odds_ratio(torch.full((1,), -1e-3), certain)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss).all() and certain.grad is not None and torch.isfinite(certain.grad).all()


def test_pairs_stay_together(trained: LoadedBase, base: LoadedBase, store: Store) -> None:
    """The padded tokens of a micro-batch count both answers of each pair."""
    units, made = of_rows(trained, base, nano.commit_rows(store, PAIRS), store, "dpo")
    budget = 3 * max(made.widths)
    groups = made.micro_batches(range(len(units)), budget)
    assert groups == by_budget(range(len(units)), [unit.width for unit in units if isinstance(unit, Pair)], budget)
    assert max(len(group) for group in groups) <= 3
