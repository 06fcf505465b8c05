"""Whatever a row holds, it is kept, kept as a preference, or dropped with a reason: never an error without a code."""

import json
import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backprop_core.data.chat_encoding import encode
from backprop_core.data.file_readers import Item, Malformed, Place
from backprop_core.data.format_detection import conversion
from backprop_core.data.preference_rows import is_preference
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_identity import identity, teaches
from backprop_core.data.template_refusals import Refusals
from backprop_core.errors import BackpropError
from backprop_core.models import chat_template
from backprop_core.schema.refs import ChatTemplate
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.cache_keys import canonical
from tests.backprop_core import nano

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, {"y": null}]}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "n"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r"},
    {"role": "tool", "content": "t", "tool_call_id": "a"},
    {"role": "assistant", "content": "a", "weight": 0},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "<think>r</think>a", "weight": 1},
]
SHAREGPT = [
    {"from": "human", "value": "u"},
    {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
    {"from": "observation", "value": "t"},
    {"from": "gpt", "value": "a"},
]
SEEDS: list[dict[str, Any]] = [
    {"messages": TURNS, "tools": TOOLS},
    {"conversations": SHAREGPT, "tools": json.dumps(TOOLS), "system": "s"},
    {"prompt": TURNS[:2], "completion": TURNS[-1:], "label": True},
    {"prompt": "p", "chosen": TURNS[-1:], "rejected": "b", "tools": TOOLS},
    {"chosen": TURNS, "rejected": [*TURNS[:-1], {"role": "assistant", "content": "b"}]},
    {"request": {"messages": TURNS[:2], "tools": TOOLS}, "response": {"choices": [{"message": TURNS[2]}]}},
    {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]},
    {"question": "q", "answer": "a", "thumbs": "up"},
    {"text": "t"},
]
JUNK: list[Any] = [
    *(None, True, False, 0, -1, 0.5, float("nan"), float("inf"), 10**400, "", " ", "x", "[", "{}", "[]", "null"),
    *('{"name": "f", "arguments": "{"}', "\ud800", "\0", "\ufdd0", "<|im_end|>", b"\xff"),
    *([], {}, [None], [[]], [{}], {"": None}, json.loads("[" * 200 + "]" * 200)),
    *({"role": "assistant"}, {"role": "tool", "content": "t"}, {"role": ["user"]}, {"type": "image_url"}),
]
TEMPLATES = [nano.CHATML, nano.CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m.tool_calls | tojson }}")]
REFUSALS = [
    Refusals(ChatTemplate(text=text, special=chat_template.named({})), tools_as_text=as_text)
    for text in TEMPLATES
    for as_text in (False, True)
]
FAST = nano.tokenizer()
SPEC = DatasetSpec(path="fuzz", format="mixed", max_bad_rows=1)
CONVERT = conversion([], SPEC)


def fate(row: Any) -> str:
    """Convert a row, render it and encode it: kept, preference, empty, or the reason why it is dropped."""
    value = row if isinstance(row, dict) else Malformed("not_an_object", "not an object")
    try:
        made = CONVERT(Item(Place(None, "line", 1), value))
    except Malformed as error:
        assert error.reason and str(error)
        return error.reason
    check(made)
    for refusals in REFUSALS:
        [found] = refusals([made])
        if isinstance(found, Malformed):
            assert found.reason and str(found)
        elif teaches(found):
            check(found)
            encode(FAST, [found], max_length=10_000)
    return "preference" if is_preference(made) else "kept" if teaches(made) else "empty"


def check(row: ChatRow) -> None:
    """The row is JSON with one spelling, has an identity, and its turns have the fields of a chat row alone."""
    assert json.loads(canonical(row)) == row and len(identity(row)) == 32
    canonical(row).encode()
    for turn in [turn for name in ("messages", "chosen", "rejected") for turn in row.get(name, [])]:
        assert turn["role"] in ("system", "user", "assistant", "tool") and isinstance(turn["content"], str)
        assert turn.keys() <= {
            *("role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id", "weight")
        }
        assert turn.get("weight", 0) == 0
        assert all(isinstance(call["function"]["arguments"], dict) for call in turn.get("tool_calls", ()))


def changed(value: Any, rng: random.Random) -> Any:
    """The value with one part of it replaced, removed or doubled."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        name = rng.choice(list(value))
        rest = {key: item for key, item in value.items() if key != name}
        return rest if rng.random() < 0.2 else {**rest, name: changed(value[name], rng)}
    place = rng.randrange(len(value))
    some = [[], [value[place]] * 2, [changed(value[place], rng)]][min(rng.randrange(6), 2)]
    return [*value[:place], *some, *value[place + 1 :]]


def test_ten_thousand_broken_rows() -> None:
    """Rows of every format with parts that are broken: each has one fate, and the reasons are many."""
    rng, fates = random.Random(0), Counter[str]()
    for _ in range(10_000):
        row: Any = rng.choice(SEEDS)
        for _ in range(rng.randint(1, 3)):
            row = changed(row, rng)
        fates[fate(row)] += 1
    assert fates.total() == 10_000 and len(fates) > 20
    assert min(fates["kept"], fates["preference"], fates["bad_call"], fates["answer_to_no_call"]) > 10


def test_the_seeds_are_well_formed() -> None:
    """The control: unbroken, each of them is kept or a preference."""
    assert {fate(seed) for seed in SEEDS} == {"kept", "preference"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({name for seed in SEEDS for name in seed} | {"images", "weight", "score", "tool_choice"})
VALUES = [value for seed in SEEDS for value in seed.values()]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), anything | st.sampled_from(VALUES)))
def test_any_value_in_any_field(row: dict[str, Any]) -> None:
    """Any JSON in any of the known fields has one fate."""
    try:
        assert fate(row)
    except BackpropError as error:
        raise AssertionError(f"an error about one row stops them all: {error}") from error
