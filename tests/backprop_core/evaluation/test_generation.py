"""Answers in batches against transformers, one prompt at a time, and against the teacher-forced scores."""

import json
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from backprop_core.data import chat_encoding, chat_rendering
from backprop_core.errors import InputValidationFailed, NoRows
from backprop_core.evaluation.generation import answer, generate, stop_ids
from backprop_core.evaluation.scoring import evaluate
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.refs import AdapterRef, ArtifactRef, RowsRef
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

ROWS = nano.chats(40)
GREEDY = GenerationSpec(max_new_tokens=24)


@pytest.fixture(scope="module")
def store(shared: Store) -> Store:
    return shared


def lines(store: Store, ref: ArtifactRef, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.local(ref) / name).read_text().splitlines()]


def test_greedy_writes_the_reference_where_argmax_is_the_label(
    base: LoadedBase, store: Store, heldout: RowsRef, tuned: AdapterRef
) -> None:
    """The answer is the reference, stop token included, exactly for the rows that match by the teacher-forced pass."""
    written = generate(base, tuned, heldout, spec=GREEDY, store=store)
    exchanges = lines(store, written, "generations.jsonl")
    scores = lines(store, evaluate(base, tuned, heldout, max_length=128, store=store), "scores.jsonl")
    equal = [row["output"] == row["reference"] and row["stopped"] for row in exchanges]
    assert equal == [row["exact"] for row in scores] and {True, False} == set(equal)
    assert [row["messages"] for row in exchanges] == [row["messages"][:-1] for row in ROWS]
    assert written.rows == 40 and written.stopped == sum(row["stopped"] for row in exchanges)


def test_a_batch_writes_what_each_prompt_alone_does(base: LoadedBase, store: Store, tuned: AdapterRef) -> None:
    """Left padding and neighbours change nothing, in any order; plain transformers writes the same."""
    asked = [row["messages"][:-1] for row in ROWS[:16]]
    together = answer(base, tuned, asked, spec=GREEDY, store=store)
    assert [made.text for made in answer(base, tuned, asked[::-1], spec=GREEDY, store=store)] == [
        made.text for made in together[::-1]
    ]
    plain = GenerationConfig(max_new_tokens=24, eos_token_id=stop_ids(base), pad_token_id=0)
    with adapted(base, tuned, store) as model:
        for messages, made in zip(asked, together, strict=True):
            text = chat_rendering.render_prompt(base.tokenizer, messages)
            ids = torch.tensor([base.tokenizer(text, add_special_tokens=False).input_ids])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)[0, ids.shape[1] :]
            assert made.text == base.tokenizer.decode(out, skip_special_tokens=True) and made.tokens == len(out)


def test_the_models_own_wishes_do_not_count(base: LoadedBase, store: Store, tuned: AdapterRef) -> None:
    """What a base's generation config asks for (sampling, a penalty) changes no answer, and is there again after."""
    asked = [ROWS[0]["messages"][:-1]]
    expected = answer(base, tuned, asked, spec=GREEDY, store=store)
    own = base.model.generation_config
    base.model.generation_config = wild = GenerationConfig(do_sample=True, temperature=2.0, repetition_penalty=9.0)
    assert answer(base, tuned, asked, spec=GREEDY, store=store) == expected
    assert base.model.generation_config is wild
    base.model.generation_config = own


def test_drawn_answers_repeat_with_their_seed(base: LoadedBase, store: Store) -> None:
    """At a temperature the same seed gives the same answers, another seed others; torch's own generator stays."""
    asked = [row["messages"][:-1] for row in ROWS[:4]]
    state = torch.get_rng_state()
    drawn = [
        answer(base, None, asked, spec=GenerationSpec(max_new_tokens=8, temperature=1.0, seed=seed), store=store)
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_control_tokens_in_a_prompt_are_text(base: LoadedBase) -> None:
    """The name of a control token that a user writes does not become one."""
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    [ids] = chat_encoding.encode_prompts(base.tokenizer, [messages])
    stop = chat_encoding.stop_id(base.tokenizer)
    assert base.tokenizer.decode([stop]) == "<|im_end|>" and ids.count(stop) == 1
    [usual] = chat_encoding.encode_prompts(base.tokenizer, [[{"role": "user", "content": "ab"}]])
    assert usual.count(stop) == 1


def test_the_longest_answer_is_cut_and_said(base: LoadedBase, store: Store, tuned: AdapterRef) -> None:
    """An answer that did not end by itself is marked."""
    asked = [ROWS[0]["messages"][:-1]]
    [cut] = answer(base, tuned, asked, spec=GenerationSpec(max_new_tokens=1), store=store)
    assert (cut.tokens, cut.stopped) == (1, False)


def test_rows_that_ask_nothing_are_refused(base: LoadedBase, store: Store) -> None:
    """Raw text and no rows at all: coded, before anything is written."""
    with pytest.raises(InputValidationFailed, match="row 2 is raw text"):
        generate(base, None, nano.commit_rows(store, [ROWS[0], {"text": "once"}]), spec=GREEDY, store=store)
    with pytest.raises(NoRows):
        generate(base, None, nano.commit_rows(store, []), spec=GREEDY, store=store)
