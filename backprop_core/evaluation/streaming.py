"""Writes one answer of a model piece by piece, as a person reads it, and stops when asked."""

from collections.abc import Callable

import torch
from torch import Tensor

from backprop_core.data import chat_encoding
from backprop_core.data.chat_rendering import Message
from backprop_core.errors import InputTooLarge
from backprop_core.evaluation.generation import configured, generated, stop_ids, until_stop
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.refs import AdapterRef, Generated
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store

OnText = Callable[[str], None]


@torch.no_grad()
def reply(
    base: LoadedBase,
    adapter: AdapterRef | None,
    messages: list[Message],
    *,
    spec: GenerationSpec,
    store: Store,
    on_text: OnText,
    should_stop: Callable[[], bool],
) -> Generated:
    """The model's answer in a conversation: the same as `generation.answer` gives for it alone.

    `on_text` gets each piece of the text as it is written. Once `should_stop` says so, the answer ends at that token.
    It also ends where the model's context does. Raises InputTooLarge if that has no room for an answer, and what
    `generation.answer` raises.
    """
    [prompt] = chat_encoding.encode_prompts(base.tokenizer, [messages])
    spec = within_context(base, len(prompt), spec)
    ids_bt = torch.tensor([prompt])
    base.check_ids(ids_bt[0])
    stops = stop_ids(base)
    pieces = Pieces(base, stops, len(prompt), on_text)
    devices = [base.device] if base.device.type == "cuda" else []
    with adapted(base, adapter, store), torch.random.fork_rng(devices), configured(base.model, spec, stops):
        torch.manual_seed(spec.seed)
        out_bt = base.model.generate(
            ids_bt.to(base.device),
            attention_mask=torch.ones_like(ids_bt).to(base.device),
            streamer=pieces,
            stopping_criteria=[lambda ids_bt, _: torch.full((1,), should_stop(), device=ids_bt.device)],
        )
    return generated(base, until_stop(out_bt[0, len(prompt) :].tolist(), stops), stops)


def within_context(base: LoadedBase, prompt: int, spec: GenerationSpec) -> GenerationSpec:
    """The spec, with as many new tokens as the model's context has room for. Raises InputTooLarge if there is none."""
    context = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return spec
    if prompt >= context:
        raise InputTooLarge(
            f"the conversation has {prompt} tokens, and this model takes {context}", hint="shorten the conversation"
        )
    return spec.model_copy(update={"max_new_tokens": min(spec.max_new_tokens, context - prompt)})


class Pieces:
    """Receives tokens from `generate` (its `streamer`), and passes on the text that they complete.

    A character may take several tokens; it is passed on with the last one.
    """

    def __init__(self, base: LoadedBase, stops: list[int], prompt: int, on_text: OnText) -> None:
        self._tokenizer, self._stops, self._on_text = base.tokenizer, stops, on_text
        self._ids: list[int] = []
        self._left = prompt  # tokens of the prompt, which `generate` passes on first
        self._said = ""

    def put(self, ids: Tensor) -> None:
        if self._left:
            self._left -= ids.numel()
            return
        self._ids += [token for token in ids.flatten().tolist() if token not in self._stops]
        text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._said) or text == self._said:
            return
        self._on_text(text[len(self._said) :])
        self._said = text

    def end(self) -> None:
        """`generate` calls it after the last token."""
