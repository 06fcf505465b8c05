"""Generates answers of one adapter to held-out prompts, in batches: greedy, or sampled at a temperature."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from backprop_core.data import chat_encoding, row_files
from backprop_core.data.batching import by_budget
from backprop_core.data.chat_answers import answered
from backprop_core.data.chat_rendering import Message
from backprop_core.data.judged_answers import preferred
from backprop_core.data.loading import ChatRow
from backprop_core.errors import InputValidationFailed, NoRows
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.records import Record
from backprop_core.schema.refs import AdapterRef, Generated, Generations, RowsRef
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

TOKENS = 8192  # per batch, including padding and max_new_tokens


class Exchange(Record):
    """A held-out row: the conversation up to its last answer, that answer (reference), and the model's answer."""

    row: int
    messages: list[dict[str, Any]]
    reference: str
    output: str
    stopped: bool


def generate(
    base: LoadedBase,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    *,
    spec: GenerationSpec,
    store: Store,
    on_progress: OnProgress | None = None,
) -> Generations:
    """Generate each row's last answer with `adapter`, or with the base alone, and commit the answers.

    `on_progress` gets (done, total) answers. Raises NoRows, AdapterMismatch, and InputValidationFailed for raw text.
    """
    if heldout.rows == 0:
        raise NoRows(f"rows artifact {heldout.digest[:12]} is empty", hint="provide more rows")
    asked = [question(row, index) for index, row in enumerate(map(preferred, row_files.load(store.local(heldout))))]
    conversations = [messages[:-1] for messages, _ in asked]
    tools = [tools for _, tools in asked]
    answers = answer(base, adapter, conversations, tools=tools, spec=spec, store=store, on_progress=on_progress)
    exchanges = [
        Exchange(
            row=row,
            messages=messages[:-1],
            reference=reference(base, messages, tools),
            output=made.text,
            stopped=made.stopped,
        )
        for row, ((messages, tools), made) in enumerate(zip(asked, answers, strict=True))
    ]
    record = {"stage": "generate", "adapter": adapter and adapter.digest, "heldout": heldout.digest}
    with store.begin("generations") as directory:
        write_generations(exchanges, directory / "generations.jsonl")
        stopped = sum(made.stopped for made in answers)
        return store.commit(directory, Generations, record=record, rows=len(exchanges), stopped=stopped)


def reference(base: LoadedBase, messages: list[Message], tools: list[Message]) -> str:
    """The last answer; with calls or reasoning, as the chat template writes it."""
    last = messages[-1]
    if "tool_calls" not in last and "reasoning_content" not in last:
        return str(last["content"])
    return chat_encoding.answer_text(base.tokenizer, messages, tools)


def question(row: ChatRow, index: int) -> tuple[list[Message], list[Message]]:
    """The turns of a row up to and including its last answer, and its tools."""
    if "text" in row:
        raise InputValidationFailed(
            f"held-out row {index + 1} is raw text, which has no question to answer",
            hint="set evaluation.metric to token_accuracy or loss",
        )
    messages: list[Message] = row["messages"]
    return messages[: answered(messages)[-1] + 1], row.get("tools", [])


def answer(
    base: LoadedBase,
    adapter: AdapterRef | None,
    conversations: Sequence[list[Message]],
    *,
    spec: GenerationSpec,
    store: Store,
    tools: Sequence[list[Message]] | None = None,
    on_progress: OnProgress | None = None,
) -> list[Generated]:
    """The model's answer in each conversation, given its tools. Deterministic for the same input, spec and machine.

    Raises ChatTemplateMissing, ChatTemplateUnusable, TokenizerMismatch, AdapterMismatch.
    """
    prompts = chat_encoding.encode_prompts(base.tokenizer, conversations, tools)
    for prompt in prompts:
        base.check_ids(torch.tensor(prompt))
    devices = [base.device] if base.device.type == "cuda" else []
    with adapted(base, adapter, store), torch.random.fork_rng(devices):
        torch.manual_seed(spec.seed)
        written = continuations(base, prompts, spec, on_progress)
    stops = stop_ids(base)
    return [generated(base, ids, stops) for ids in written]


@torch.no_grad()
def continuations(
    base: LoadedBase, prompts: Sequence[list[int]], spec: GenerationSpec, on_progress: OnProgress | None
) -> list[list[int]]:
    """The generated ids for each prompt, up to and including the stop token."""
    stops = stop_ids(base)
    found: dict[int, list[int]] = {}
    lengths = [len(prompt) + spec.max_new_tokens for prompt in prompts]
    with configured(base.model, spec, stops):
        for indices in by_budget(range(len(prompts)), lengths, TOKENS):
            rows = [torch.tensor(prompts[index]) for index in indices]
            ids_bt = pad_sequence(rows, batch_first=True, padding_side="left", padding_value=stops[0])
            mask_bt = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
            out_bt = base.model.generate(ids_bt.to(base.device), attention_mask=mask_bt.to(base.device))
            new = out_bt[:, ids_bt.shape[1] :].tolist()
            found |= {index: until_stop(ids, stops) for index, ids in zip(indices, new, strict=True)}
            if on_progress:
                on_progress(len(found), len(prompts))
    return [found[index] for index in range(len(prompts))]


@contextmanager
def configured(model: Any, spec: GenerationSpec, stops: list[int]) -> Iterator[None]:
    """Generate by `spec` alone: replace the model's own generation config, which would be merged in otherwise."""
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": spec.temperature, "top_k": 0} if spec.temperature else {}
    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=spec.max_new_tokens, eos_token_id=stops, pad_token_id=stops[0], **sampling
    )
    try:
        yield
    finally:
        model.generation_config = own


def stop_ids(base: LoadedBase) -> list[int]:
    """All stop tokens: the chat template's first, then those of the model's config and tokenizer."""
    named = base.model.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    every = [chat_encoding.stop_id(base.tokenizer), *listed, base.tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in every if token is not None))


def until_stop(ids: list[int], stops: list[int]) -> list[int]:
    """The ids up to and including the first stop token; the rest is padding."""
    text = list(takewhile(lambda token: token not in stops, ids))
    return ids[: len(text) + 1]


def generated(base: LoadedBase, ids: list[int], stops: list[int]) -> Generated:
    """Decode ids without the stop token."""
    stopped = ids[-1] in stops
    text = str(base.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True))
    return Generated(text=text, tokens=len(ids), stopped=stopped)


def write_generations(exchanges: list[Exchange], path: Path) -> None:
    lines = [canonical(exchange.model_dump()) + "\n" for exchange in exchanges]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
