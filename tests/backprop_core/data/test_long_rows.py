"""A row that does not fit is never learned as if its answer ended at the maximum length."""

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backprop_core.data.chat_encoding import BATCH, Examples, encode
from backprop_core.errors import NoLabelTokens
from backprop_core.schema.specs import Limit, TooLong, TrainSpec
from backprop_core.store.cache_keys import part
from tests.backprop_core.nano import tokenizer

FAST = tokenizer()
STOP = "<|im_end|>"


def row(*lengths: int, system: str = "") -> dict[str, Any]:
    """A conversation whose n-th turn is its number and so many letters."""
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": f"{number}:" + "x" * length}
        for number, length in enumerate(lengths)
    ]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def encoded(*rows: dict[str, Any], length: int, how: TooLong | None) -> Examples:
    return encode(FAST, rows, max_length=Limit(tokens=length, too_long=how))


def learnt(examples: Examples) -> list[str]:
    return [FAST.decode([i for i, label in zip(e.ids, e.labels, strict=True) if label]) for e in examples]


SHORT, LONG = row(3, 3), row(3, 90)


def test_before_there_was_a_choice_rows_were_cut() -> None:
    """Without a choice, as in old specs, the answer is cut on the right, and the cache keys are those of then."""
    assert encoded(SHORT, LONG, length=40, how=None) == encode(FAST, [SHORT, LONG], max_length=40)
    assert not learnt(encoded(LONG, length=40, how=None))[0].endswith(STOP)  # what the choices below avoid
    assert part(TrainSpec(max_length=40).limit) == 40
    assert "too_long" not in TrainSpec().semantic()


def test_drop_leaves_the_row_out() -> None:
    """The row is left out and counted; one whose newline alone does not fit is kept."""
    found = encoded(SHORT, LONG, SHORT, length=40, how="drop")
    assert ([one.row for one in found], found.cut, found.left_out) == ([0, 2], 0, 1)
    [whole] = encoded(SHORT, length=999, how="drop")
    [tight] = encoded(SHORT, length=len(whole.ids) - 1, how="drop")
    assert tight.ids == whole.ids[:-1] and tight.labels == whole.labels[:-1]
    with pytest.raises(NoLabelTokens, match="none of 1 rows has an answer within 40 tokens") as caught:
        encoded(LONG, length=40, how="drop")
    assert "cut_left" in caught.value.hint


def test_cut_left_leaves_out_the_earliest_turns() -> None:
    """The system prompt and the last exchanges stay, whole, and begin with a user's turn."""
    found = encoded(row(3, 30, 3, 30, 3, 5, system="s"), row(3, 190), length=110, how="cut_left")
    assert (found.cut, found.left_out, len(found)) == (1, 1, 1)
    text = FAST.decode(found[0].ids)
    assert text.startswith(f"<|im_start|>system\ns{STOP}\n<|im_start|>user\n2:") and "0:" not in text
    assert learnt(found) == ["3:" + "x" * 30 + STOP + "5:" + "x" * 5 + STOP]


def test_windows_learn_every_answer_once() -> None:
    """A conversation becomes stretches of whole turns; an answer that fits in none is left out."""
    found = encoded(row(3, 30, 3, 30, 3, 5, 3, 99, system="s"), length=75, how="windows")
    assert (found.cut, found.left_out) == (1, 1)
    said = "".join(learnt(found))
    assert said == "".join(f"{n}:" + "x" * length + STOP for n, length in ((1, 30), (3, 30), (5, 5)))
    assert all(one.row == 0 and len(one.ids) <= 75 for one in found)


def test_windows_learn_every_token_of_a_text_once() -> None:
    """Raw text becomes pieces that overlap by the token that nothing in its piece predicts."""
    text = {"text": "the user " * 40}
    [whole] = encoded(text, length=9999, how="windows")
    found = encoded(text, length=16, how="windows")
    assert [i for e in found for i, label in zip(e.ids, e.labels, strict=True) if label] == whole.ids[1:]
    assert max(len(one.ids) for one in found) == 16 and (found.cut, found.left_out) == (1, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=8).map(lambda lengths: lengths[: len(lengths) // 2 * 2]),
    st.integers(16, 150),
    st.sampled_from(["drop", "cut_left", "windows"]),
    st.sampled_from(["", "be brief"]),
)
def test_what_is_learned_is_whole(lengths: list[int], length: int, how: TooLong, system: str) -> None:
    """Whatever the turns, every learned answer is one of the row's, with its stop token, and none is learned twice."""
    conversation = row(*lengths, system=system)
    found = encoded(SHORT, conversation, length=max(length, 30), how=how)
    answers = [turn["content"] for turn in conversation["messages"] if turn["role"] == "assistant"]
    said = [part for text in learnt(Examples(found[1:])) for part in text.split(STOP)]
    assert [part for part in said if part] == [answer for answer in answers if answer in said]
    assert sum(text.count(STOP) for text in learnt(Examples(found[1:]))) == len([part for part in said if part])
    assert all(len(one.ids) <= max(length, 30) for one in found)


class Noting:
    """A tokenizer's own backend, which notes the threads that tokenize with it or change a setting of it."""

    def __init__(self, backend: Any) -> None:
        self.__dict__.update(backend=backend, threads=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("encode", "no_", "enable_")):
            self.threads.append(threading.get_ident())
        return getattr(self.backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.threads.append(threading.get_ident())
        setattr(self.backend, name, value)


@pytest.mark.parametrize("how", ["drop", "cut_left", "windows"])
def test_one_thread_alone_uses_the_tokenizer(how: TooLong) -> None:
    """From the first batch on, whatever a row needs: what is set for its words would change those of another row."""
    fast = tokenizer()
    fast.bos_token = "<|im_start|>"  # so that raw text asks the tokenizer whether it begins with it
    fast._tokenizer = noting = Noting(fast._tokenizer)
    named = [*row(40, 40)["messages"], SHORT["messages"][0], {"role": "assistant", "content": STOP}]
    rows = [row(40, 40, 3, 3), {"messages": named}, *[SHORT] * BATCH, {"text": "some text"}]
    assert encode(fast, rows, max_length=Limit(tokens=60, too_long=how))
    here = threading.get_ident()
    first = next(place for place, thread in enumerate(noting.threads) if thread != here)
    assert len(set(noting.threads[first:])) == 1 and noting.threads[first] != here
