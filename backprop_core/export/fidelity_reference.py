"""The reference of the fidelity check: the fused model's token ids, likely tokens and answers, as an artifact.

The model reads each text once for any number of GGUF files; the comparison needs neither the model nor transformers.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field
from safetensors.torch import load_file, save
from tokenizers.normalizers import NFC
from torch import Tensor
from torch.nn.functional import log_softmax

from backprop_core.data import row_files
from backprop_core.data.chat_answers import answered
from backprop_core.data.chat_encoding import stop_id
from backprop_core.data.chat_rendering import Message, render, render_prompt
from backprop_core.data.control_tokens import Controls
from backprop_core.data.judged_answers import preferred
from backprop_core.data.loading import ChatRow
from backprop_core.evaluation.generation import answer
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.records import Record
from backprop_core.schema.refs import AdapterRef, Generated, ReferenceRef, RowsRef
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

TOKENS = 512  # compared per text
LIKELY = 1024  # most likely tokens stored per position; the rest is merged into one
ANSWER = 64  # maximum tokens per answer
ASKED = 2  # held-out conversations to answer if there are no canaries
NOTES, LOGITS = "reference.json", "likely.safetensors"

# t = tokens of all texts concatenated, the first TOKENS of each; k = at most LIKELY; v = vocabulary


class Text(Record):
    """A held-out row as a server receives it, and its token ids as in training."""

    text: str
    ids: list[int]
    chat: bool = Field(description="Whether a chat template rendered it, including BOS.")


class Asked(Record):
    """A conversation, as rendered by the model's chat template, and the model's answer."""

    messages: list[Message]
    prompt: str
    text: str = Field(description="The prompt as a server receives it.")
    ids: list[int]
    answer: Generated


class Notes(Record):
    """Chat template, stop token, texts and answers of the model."""

    format: Literal[1] = 1
    template: str
    stop: int
    texts: list[Text]
    asked: list[Asked]


class Likely(NamedTuple):
    """By position: the most likely token, the LIKELY tokens, log p of each, and log p of all others together."""

    best_t: Tensor
    ids_tk: Tensor
    log_p_tk: Tensor
    rest_t: Tensor

    @classmethod
    def of(cls, logits_tv: Tensor) -> Self:
        log_p_tv = log_softmax(logits_tv.float(), -1)
        log_p_tk, ids_tk = log_p_tv.topk(min(LIKELY, logits_tv.shape[-1]), -1)
        return cls(logits_tv.argmax(-1).int(), ids_tk.int(), log_p_tk, rest(log_p_tv, ids_tk))


class Reference(NamedTuple):
    """Everything that a GGUF file is compared with."""

    notes: Notes
    likely: Likely


def rest(log_p_tv: Tensor, ids_tk: Tensor) -> Tensor:
    """log p of all tokens except these together, by position: (t,)."""
    return log_p_tv.scatter(-1, ids_tk.long(), -torch.inf).logsumexp(-1)


def reference(
    base: LoadedBase, adapter: AdapterRef | None, heldout: RowsRef, *, rows: int, prompts: list[str], store: Store
) -> ReferenceRef:
    """Run the base (float32) with `adapter`, or alone, on the first `rows` rows, and commit logits and answers.

    It answers `prompts`, or else the first conversations. Raises AdapterMismatch, ChatTemplateUnusable.
    """
    first = list(map(preferred, row_files.load(store.local(heldout))[:rows]))
    chats = conversations(base.tokenizer, prompts, first)
    spec = GenerationSpec(max_new_tokens=ANSWER)
    answers = answer(base, adapter, chats, spec=spec, store=store) if chats else []
    with adapted(base, adapter, store) as model, base.checking_ids():
        made = refer(model, base.tokenizer, first, list(zip(chats, answers, strict=True)))
    record = {"stage": "reference", "adapter": adapter and adapter.digest, "heldout": heldout.digest}
    with store.begin("reference") as directory:
        write_reference(made, directory)
        return store.commit(directory, ReferenceRef, record=record, positions=len(made.likely.best_t))


def refer(
    model: Any, tokenizer: Any, rows: Sequence[ChatRow], asked: Sequence[tuple[list[Message], Generated]] = ()
) -> Reference:
    """Compute the reference of `model` (transformers, float32, with adapter) on the rows; add its answers."""
    texts = [text_of(tokenizer, row) for row in rows]
    assert any(text.ids for text in texts), "nothing to compare"
    notes = Notes(
        template=tokenizer.get_chat_template(),
        stop=stop_id(tokenizer),
        texts=texts,
        asked=[asked_of(tokenizer, messages, answer) for messages, answer in asked],
    )
    parts = [Likely.of(reference_logits(model, text.ids[:TOKENS])) for text in texts if text.ids]
    return Reference(notes, Likely(*map(torch.cat, zip(*parts, strict=True))))


def text_of(tokenizer: Any, row: ChatRow) -> Text:
    """A row as a server receives it; the ids of raw text start with BOS if training adds it.

    Text is normalized if the tokenizer does so, as llama.cpp has no normalizer. Control tokens' names in a row become
    control tokens, as in servers.
    """
    text, begin = render(tokenizer, row), Controls(tokenizer).begin if "text" in row else ""
    return Text(text=normalized(tokenizer, text), ids=token_ids(tokenizer, begin + text), chat="messages" in row)


def asked_of(tokenizer: Any, messages: list[Message], answer: Generated) -> Asked:
    prompt = render_prompt(tokenizer, messages)
    text, ids = normalized(tokenizer, prompt), token_ids(tokenizer, prompt)
    return Asked(messages=messages, prompt=prompt, text=text, ids=ids, answer=answer)


def conversations(tokenizer: Any, prompts: Sequence[str], rows: Sequence[ChatRow]) -> list[list[Message]]:
    """The conversations to answer: the prompts, or else the first short rows without tools, up to the last answer."""
    if prompts:
        return [[{"role": "user", "content": prompt}] for prompt in prompts]
    chats: list[list[Message]] = [row["messages"] for row in rows if "messages" in row and "tools" not in row]
    begun = (messages[: answered(messages)[-1]] for messages in chats)
    short = (each for each in begun if len(token_ids(tokenizer, render_prompt(tokenizer, each))) + ANSWER <= TOKENS)
    return list(islice(short, ASKED))


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text without adding special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def normalized(tokenizer: Any, text: str) -> str:
    """`text` in NFC if the tokenizer normalizes to NFC; llama.cpp implements the other normalizers itself."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return str(normalizer.normalize_str(text)) if isinstance(normalizer, NFC) else text


@torch.inference_mode()
def reference_logits(model: Any, ids: list[int]) -> Tensor:
    """The model's logits after every token, (t, v) in float32 on the CPU."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().cpu()


def write_reference(made: Reference, directory: Path) -> None:
    (directory / NOTES).write_text(canonical(made.notes.model_dump()) + "\n", encoding="utf-8", newline="\n")
    tensors = {name: tensor.contiguous() for name, tensor in made.likely._asdict().items()}
    (directory / LOGITS).write_bytes(save(tensors, metadata={"format": "pt"}))


def read_reference(directory: Path) -> Reference:
    notes = Notes.model_validate_json((directory / NOTES).read_bytes())
    return Reference(notes, Likely(**load_file(directory / LOGITS)))
