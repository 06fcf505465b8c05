"""An answer that is written piece by piece is the one that a batch gives, and ends when asked."""

from collections.abc import Callable
from typing import Any

import pytest

from backprop_core.errors import InputTooLarge
from backprop_core.evaluation.generation import answer
from backprop_core.evaluation.streaming import Pieces, reply
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import AdapterRef, Generated
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

SPEC = GenerationSpec(max_new_tokens=24)
ASKED: list[dict[str, Any]] = nano.chats(1)[0]["messages"][:-1]
Write = Callable[..., tuple[Generated, list[str]]]


@pytest.fixture(scope="module")
def store(shared: Store) -> Store:
    return shared


@pytest.fixture
def write(base: LoadedBase, store: Store, tuned: AdapterRef) -> Write:
    """Asks the adapter; returns the answer and its pieces."""

    def write(messages: list[dict[str, Any]] = ASKED, spec: GenerationSpec = SPEC, stop_after: int = 99) -> Any:
        pieces: list[str] = []
        made = reply(
            base,
            tuned,
            messages,
            spec=spec,
            store=store,
            on_text=pieces.append,
            should_stop=lambda: len(pieces) >= stop_after,
        )
        return made, pieces

    return write


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_pieces_are_the_answer_of_a_batch(
    base: LoadedBase, store: Store, tuned: AdapterRef, write: Write, temperature: float
) -> None:
    """Token by token or at once, greedy or drawn: the same text, tokens and end."""
    spec = GenerationSpec(max_new_tokens=24, temperature=temperature, seed=3)
    made, pieces = write(spec=spec)
    assert [made] == answer(base, tuned, [ASKED], spec=spec, store=store)
    assert len(pieces) > 1 and made.text.startswith("".join(pieces))
    assert "".join(pieces) == made.text.rstrip("\N{REPLACEMENT CHARACTER}") or temperature


def test_an_answer_stops_at_the_next_token(write: Write) -> None:
    """Once asked, no more than the token that is being computed is written; the answer counts as cut."""
    whole, _ = write()
    made, pieces = write(stop_after=1)
    assert len(pieces) <= 2 and whole.text.startswith(made.text) and not made.stopped and made.tokens < whole.tokens


def test_a_conversation_that_fills_the_context(write: Write) -> None:
    """The answer ends where the context does; a conversation without room for one is refused with its length."""
    made, _ = write([{"role": "user", "content": "a b" * 160}], GenerationSpec(max_new_tokens=500))
    assert 0 < made.tokens < 500
    with pytest.raises(InputTooLarge, match="this model takes 512"):
        write([{"role": "user", "content": "x " * 600}])


def test_a_character_of_several_tokens_is_one_piece(base: LoadedBase) -> None:
    """Half a character is never passed on."""
    import torch

    pieces: list[str] = []
    receiver = Pieces(base, [], 2, pieces.append)
    receiver.put(torch.tensor([[1, 2]]))
    for token in base.tokenizer("aé🙂b", add_special_tokens=False).input_ids:
        receiver.put(torch.tensor([token]))
    assert pieces == ["a", "é", "🙂", "b"]
