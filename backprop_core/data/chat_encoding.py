"""Chat rows → token ids and label masks, by the tokenizer's own chat template.

Labels are the assistant's turns: what stands after the generation prompt, up to and with the stop token, not the
newline after it. Of raw text every token is one, and the end-of-sequence token that is put after it.

Templates are rendered in `templates.sandbox`. A control token (an added token marked special) comes
from the template alone: where its name stands in a row, it is set between fences before rendering, and what lies
between fences is tokenized as plain text.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from backprop_core.data.loading import ChatRow
from backprop_core.errors import ChatTemplateMissing, ChatTemplateUnusable, NoLabelTokens
from backprop_core.models import chat_template

Message: TypeAlias = dict[str, str]

BATCH = 1024  # texts tokenized at once
LIMITED = 64  # rows rendered in
FENCE = "\ufdd0"  # a code point that Unicode keeps for uses like this one


class Example(NamedTuple):
    """Token ids, for each whether it is a label (the first never is), and the index of the row they come from."""

    ids: list[int]
    labels: list[bool]
    row: int


class Examples(list[Example]):
    """Examples in the order of their rows; how many were cut at the length, and how many left out without a label."""

    cut = 0
    left_out = 0


class Written(NamedTuple):
    """A row, or its conversation up to one answer, as text; `spans` are the labels' characters."""

    row: int
    text: str
    spans: list[tuple[int, int]]
    fence: str


class Tokens(NamedTuple):
    """The ids of a text's tokens, and of each its first character and that after its last."""

    ids: list[int]
    characters_t2: NDArray[np.int64]


class Answer(NamedTuple):
    """An assistant's turn: the conversation up to its end, the character where it starts, that after its stop token."""

    text: str
    start: int
    end: int


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow], *, max_length: int) -> Examples:
    """Rows as examples of at most `max_length` tokens, cut on the right.

    A row is one example, unless the template writes earlier turns otherwise once later ones follow (Qwen3 drops their
    thoughts): then it is one example an answer. An example without a label, or that loses all of them to the cut, is
    left out and counted.

    A row that the template does not write is left out and counted too: curation has dropped those that it knows of.

    Raises ChatTemplateMissing; ChatTemplateUnusable if the template writes no row, or loops; NoLabelTokens naming a row
    without an answer, or if no example is left.
    """
    refused: list[ChatTemplateUnusable] = []
    written = list(write_all(tokenizer, rows, refused))
    if refused and not written:
        raise refused[0]
    examples = Examples()
    examples.left_out = len(refused)
    for text, tokens in zip(written, tokenize(tokenizer, written), strict=True):
        example = labelled(text, tokens)
        short = Example(example.ids[:max_length], example.labels[:max_length], example.row)
        examples.cut += len(example.ids) > max_length
        if any(short.labels):
            examples.append(short)
        else:
            examples.left_out += 1
    if rows and not examples:
        raise NoLabelTokens(
            f"none of {len(rows)} rows has a token to learn from in its first {max_length}",
            hint="raise training.max_length" if examples.cut else "give rows whose answers are more than spaces",
        )
    return examples


def labelled(written: Written, tokens: Tokens) -> Example:
    """The example of these tokens; where an answer comes to no token it has no label."""
    first_t, end_t = tokens.characters_t2.T
    labels_t = np.zeros(len(first_t), dtype=bool)
    for start, end in written.spans:
        labels_t |= (end_t > start) & (first_t < end)
    labels_t[:1] = False
    return Example(tokens.ids, labels_t.tolist(), written.row)


# Control tokens


class Controls:
    """The control tokens of a tokenizer, and how to keep their names in a row from becoming them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = "|".join(map(re.escape, sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)))
        self._names = re.compile(names or r"(?!)")
        self._stop = re.compile(rf"({names or '(?!)'})(?:\s|{names or '(?!)'})*\Z")
        self._tokenizer = tokenizer

    @cached_property
    def begin(self) -> str:
        """What raw text begins with: the BOS token, or nothing."""
        return str(self._tokenizer.bos_token) if begins_with_bos(self._tokenizer) else ""

    def stop(self, text: str, start: int) -> int | None:
        """Where the stop token ends: the first of the control tokens, spaces aside, that end `text`."""
        found = self._stop.search(text, start)
        return found.end(1) if found else None

    def fence_for(self, texts: list[str]) -> str:
        """A string that is in none of the texts; empty if none of them names a control token."""
        if not any(self._names.search(text) for text in texts):
            return ""
        return FENCE * (1 + sum(text.count(FENCE) for text in texts))

    def fenced(self, text: str, fence: str) -> str:
        """`text` with fences around the names of control tokens."""
        return self._names.sub(lambda name: fence + name[0] + fence, text) if fence else text


# Rendering


def write_all(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow], refused: list[ChatTemplateUnusable]
) -> Iterator[Written]:
    """All rows as the texts to learn from; why the template does not write a row comes to `refused`."""
    controls = Controls(tokenizer)
    for begin in range(0, len(rows), LIMITED):
        with chat_template.limit():
            indices = range(begin, min(begin + LIMITED, len(rows)))
            texts = [text for index in indices for text in render_row(tokenizer, controls, rows[index], index, refused)]
        yield from texts


def render_row(
    tokenizer: PreTrainedTokenizerBase,
    controls: Controls,
    row: ChatRow,
    index: int,
    refused: list[ChatTemplateUnusable],
) -> list[Written]:
    """A row as the texts to learn from: one, or one an answer; none where the template refuses it."""
    if "text" in row:
        return [raw(tokenizer, controls, row["text"], index)]
    fence = controls.fence_for([turn["content"] for turn in row["messages"]])
    messages = [{**turn, "content": controls.fenced(turn["content"], fence)} for turn in row["messages"]]
    try:
        answers = [answer(tokenizer, controls, messages[: end + 1]) for end in answered(messages)]
    except ChatTemplateUnusable as error:
        refused.append(ChatTemplateUnusable(f"row {index + 1}: {error.message}", hint=error.hint))
        return []
    if not answers:
        raise NoLabelTokens(f"row {index + 1} has no answer to learn from", hint="remove it, or give it an answer")
    whole = answers[-1].text
    if all(whole.startswith(part.text[: part.end]) for part in answers):
        return [Written(index, whole, [(part.start, part.end) for part in answers], fence)]
    return [Written(index, part.text, [(part.start, part.end)], fence) for part in answers]


def raw(tokenizer: PreTrainedTokenizerBase, controls: Controls, text: str, index: int) -> Written:
    """Raw text between fences, after the token that begins every sequence if there is one, its end after it."""
    if tokenizer.eos_token is None:
        raise ChatTemplateUnusable("the tokenizer names no eos_token to end raw text with", hint="add it to its config")
    fence = FENCE * (1 + text.count(FENCE))
    begin = controls.begin
    whole = f"{begin}{fence}{text}{fence}{tokenizer.eos_token}"
    return Written(index, whole, [(len(begin), len(whole))], fence)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every sequence begins with BOS: the tokenizer puts it before a text, and the chat template writes it.

    llama.cpp has one setting for both, `add_bos_token`, and its servers take away the BOS that a template has written
    before they add theirs. A tokenizer that adds BOS where its chats are written without one is taken at its chats'
    word: raw text has no BOS then, in training and in the GGUF file.
    """
    bos = tokenizer.bos_token
    if bos is None or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        return False
    return not tokenizer.chat_template or render_prompt(tokenizer, [chat_template.ASKED]).startswith(bos)


def answered(messages: list[Message]) -> list[int]:
    """Positions of the assistant's turns that say something to something."""
    turns = enumerate(messages)
    return [i for i, turn in turns if i and turn["role"] == "assistant" and turn["content"].strip()]


def answer(tokenizer: PreTrainedTokenizerBase, controls: Controls, messages: list[Message]) -> Answer:
    """The last of the messages, which is an assistant's."""
    prompt = apply(tokenizer, messages[:-1], add_generation_prompt=True)
    text = apply(tokenizer, messages, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise ChatTemplateUnusable(
            "the chat template's assistant turn does not begin as its generation prompt does", hint=chat_template.HINT
        )
    end = controls.stop(text, len(prompt))
    if end is None:
        raise ChatTemplateUnusable(
            "the chat template ends an assistant turn without a stop token", hint=chat_template.HINT
        )
    return Answer(text, len(prompt), end)


def stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the chat template ends an answer with. Raises ChatTemplateMissing, ChatTemplateUnusable."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with chat_template.limit():
        written = answer(tokenizer, Controls(tokenizer), messages)
    [tokens] = encodings(tokenizer, [written.text[: written.end]], plain=False)
    return int(tokens.ids[-1])


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """The conversation so far, and the beginning of the assistant's next turn."""
    with chat_template.limit():
        return apply(tokenizer, messages, add_generation_prompt=True)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]) -> list[list[int]]:
    """The token ids of each conversation so far, and of the beginning of the assistant's next turn.

    Raises ChatTemplateMissing, ChatTemplateUnusable.
    """
    controls = Controls(tokenizer)
    with chat_template.limit():
        written = [write_prompt(tokenizer, controls, messages) for messages in conversations]
    return [tokens.ids for tokens in tokenize(tokenizer, written)]


def write_prompt(tokenizer: PreTrainedTokenizerBase, controls: Controls, messages: list[Message]) -> Written:
    fence = controls.fence_for([turn["content"] for turn in messages])
    fenced = [{**turn, "content": controls.fenced(turn["content"], fence)} for turn in messages]
    return Written(0, apply(tokenizer, fenced, add_generation_prompt=True), [], fence)


def render(tokenizer: PreTrainedTokenizerBase, row: ChatRow) -> str:
    """A whole row as text: its conversation, or its raw text without what begins and ends it."""
    if "text" in row:
        return str(row["text"])
    with chat_template.limit():
        return apply(tokenizer, row["messages"], add_generation_prompt=False)


def apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, add_generation_prompt: bool) -> str:
    """The messages as the tokenizer's chat template writes them, in the sandbox."""
    template = template_of(tokenizer)
    if not template:
        raise ChatTemplateMissing("the tokenizer has no chat template", hint=chat_template.HINT)
    special = tokenizer.special_tokens_map
    return chat_template.render(template, messages, special=special, add_generation_prompt=add_generation_prompt)


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, of several the default; empty if there is none."""
    named = tokenizer.chat_template or ""
    return named if isinstance(named, str) else str(named.get("default", ""))


# Tokenizing


def tokenize(tokenizer: PreTrainedTokenizerBase, written: list[Written]) -> Iterator[Tokens]:
    """The tokens of each text."""
    for begin in range(0, len(written), BATCH):
        batch = written[begin : begin + BATCH]
        pieces = [text.text.split(text.fence) if text.fence else [text.text] for text in batch]
        template = iter(encodings(tokenizer, [piece for parts in pieces for piece in parts[::2]], plain=False))
        plain = iter(encodings(tokenizer, [piece for parts in pieces for piece in parts[1::2]], plain=True))
        for text, parts in zip(batch, pieces, strict=True):
            yield joined([next(plain if number % 2 else template) for number in range(len(parts))], parts, text.fence)


def encodings(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, plain: bool) -> list[Encoding]:
    """Each text's tokens, as they are; if `plain`, no name of a control token is one."""
    if not texts:
        return []
    batch = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain, verbose=False)
    return list(batch.encodings)


def joined(encodings: list[Encoding], pieces: list[str], fence: str) -> Tokens:
    """The tokens of a text's pieces, their characters counted from the text's beginning."""
    starts = accumulate((len(piece) + len(fence) for piece in pieces[:-1]), initial=0)
    characters = [
        np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start
        for encoding, start in zip(encodings, starts, strict=True)
    ]
    return Tokens([token for encoding in encodings for token in encoding.ids], np.concatenate(characters))
