"""Tokenizes chat rows with the tokenizer's chat template, and marks the label tokens (loss mask).

Labels are the tokens of assistant turns that are learned, text, reasoning and calls: after the generation prompt, up to
and including the stop token, without the newline after it. What a tool answers is never a label. In raw text every
token is a label, including the end-of-sequence token appended to it.

Templates are rendered in `templates.sandbox`. A control token (an added token marked special) comes from the template
alone: where its name stands in a row, also in an argument or a tool's description, it is set between fences before
rendering, and what lies between fences is tokenized as plain text.
"""

from __future__ import annotations  # the tokenizer's type is of transformers, which the parent does not import

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate, chain, groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from backprop_core.data.long_rows import Example, first, fits, shorter
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.data.tool_calls import strings_in
from backprop_core.errors import ChatTemplateMissing, ChatTemplateUnusable, NoLabelTokens
from backprop_core.models import chat_template
from backprop_core.schema.specs import Limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = dict[str, Any]

BATCH = 1024  # texts tokenized at once
LIMITED = 512  # rows rendered per time limit
FENCE = "\ufdd0"  # a Unicode noncharacter, reserved for internal use
ESCAPED = "\\ufdd0"  # the same in JSON that is limited to ASCII


class Examples(list[Example]):
    """Examples in row order; `cut`: how many rows were shortened; `left_out`: how many rows or answers are missing."""

    cut = 0
    left_out = 0

    def add(self, made: Sequence[Example], length: int, *, counts: bool) -> None:
        """Add a row's examples, cut on the right; one without a label is left out. `counts` those that are cut."""
        for example in made:
            short = first(example, length)
            self.cut += counts and len(example.ids) > length
            if any(short.labels):
                self.append(short)
            else:
                self.left_out += 1


class Written(NamedTuple):
    """A row, or its conversation up to one answer, rendered as text; `spans` are the character ranges of labels."""

    row: int
    text: str
    spans: list[tuple[int, int]]
    fence: str


class Tokens(NamedTuple):
    """Token ids of a text, and each token's character range (start, end)."""

    ids: list[int]
    characters_t2: NDArray[np.int64]


class Answer(NamedTuple):
    """An assistant turn: the conversation up to its end, and the character range of the answer with its stop token."""

    text: str
    start: int
    end: int


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow], *, max_length: int | Limit) -> Examples:
    """Encode rows as examples of at most `max_length` tokens.

    A row is one example, unless the template renders earlier turns differently once later ones follow (Qwen3 drops
    their thoughts): then each answer is one example. A row whose labels do not fit is treated as the limit says, see
    `long_rows`; a limit that is a number cuts it on the right, as runs did before there was a choice. Examples without
    a label token are left out and counted, and so are rows that the template refuses; curation has usually dropped
    those.

    Raises ChatTemplateMissing; ChatTemplateUnusable if the template renders no row, or loops; NoLabelTokens for a row
    without an answer, or if no example is left.
    """
    refused: list[ChatTemplateUnusable] = []
    written = list(write_all(tokenizer, rows, refused))
    if refused and not written:
        raise refused[0]
    limit = max_length if isinstance(max_length, Limit) else Limit(tokens=max_length)
    examples = Examples()
    examples.left_out = len(refused)
    pairs = zip(written, tokenize(tokenizer, written), strict=True)
    for index, group in groupby(pairs, key=lambda pair: pair[0].row):
        made = [labelled(*pair) for pair in group]
        if limit.too_long is None or all(fits(example, limit.tokens) for example in made):
            examples.add(made, limit.tokens, counts=limit.too_long is None)
        else:
            short = shorter(rows[index], made, limit.tokens, limit.too_long, partial(encoded, tokenizer, index))
            examples.extend(short.examples)
            examples.cut += bool(short.examples)
            examples.left_out += short.left_out
    if rows and not examples:
        raise no_labels(len(rows), limit, cut=bool(examples.cut or examples.left_out > len(refused)))
    return examples


def encoded(tokenizer: PreTrainedTokenizerBase, index: int, row: ChatRow) -> list[Example]:
    """The examples of one row at their full length; none if the template refuses it."""
    written = [text._replace(row=index) for text in write_all(tokenizer, [row], [])]
    return [labelled(*pair) for pair in zip(written, tokenize(tokenizer, written), strict=True)]


def no_labels(rows: int, limit: Limit, *, cut: bool) -> NoLabelTokens:
    """The error if no example is left."""
    if limit.too_long is not None and cut:
        return NoLabelTokens(
            f"none of {rows} rows has an answer within {limit.tokens} tokens",
            hint="raise training.max_length, or set training.too_long to cut_left or windows",
        )
    return NoLabelTokens(
        f"none of {rows} rows has a label token in its first {limit.tokens} tokens",
        hint="raise training.max_length" if cut else "use rows with non-empty answers",
    )


def labelled(written: Written, tokens: Tokens) -> Example:
    """The example with its label flags; an answer without tokens has no label."""
    first_t, end_t = tokens.characters_t2.T
    labels_t = np.zeros(len(first_t), dtype=bool)
    for start, end in written.spans:
        labels_t |= (end_t > start) & (first_t < end)
    labels_t[:1] = False
    return Example(tokens.ids, labels_t.tolist(), written.row)


# Control tokens


class Controls:
    """The control tokens of a tokenizer; fences their names in rows, so that they are tokenized as plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = "|".join(map(re.escape, sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)))
        self._names = re.compile(names or r"(?!)")
        self._stop = re.compile(rf"({names or '(?!)'})(?:\s|{names or '(?!)'})*\Z")
        self._tokenizer = tokenizer
        self.special = tokenizer.special_tokens_map  # made anew each time that it is asked for

    @cached_property
    def begin(self) -> str:
        """The prefix of raw text: the BOS token, or an empty string."""
        return str(self._tokenizer.bos_token) if begins_with_bos(self._tokenizer) else ""

    def stop(self, text: str, start: int) -> int | None:
        """The end of the stop token: of the control tokens that end `text`, whitespace aside, the first."""
        found = self._stop.search(text, start)
        return found.end(1) if found else None

    def fence_for(self, texts: list[str]) -> str:
        """A string that occurs in none of the texts; empty if they contain no control token's name."""
        if not any(self._names.search(text) for text in texts):
            return ""
        return FENCE * (1 + sum(text.count(FENCE) for text in texts))

    def fenced(self, text: str, fence: str) -> str:
        """`text` with fences around the names of control tokens."""
        return self._names.sub(lambda name: fence + name[0] + fence, text) if fence else text

    def fenced_in(self, value: Any, fence: str) -> Any:
        """A JSON value with fences in all of its strings and keys."""
        match value:
            case str():
                return self.fenced(value, fence)
            case list():
                return [self.fenced_in(item, fence) for item in value]
            case dict():
                return {self.fenced(name, fence): self.fenced_in(item, fence) for name, item in value.items()}
        return value

    def fence_in(self, messages: list[Message], tools: list[Message]) -> tuple[list[Message], list[Message], str]:
        """Messages and tools with fences around the names of control tokens, and the fence; empty if there are none."""
        fence = self.fence_for([text for value in (*messages, *tools) for text in strings_in(value)])
        if not fence:
            return messages, tools, fence
        turns = [{**self.fenced_in(turn, fence), "role": turn["role"]} for turn in messages]
        return turns, self.fenced_in(tools, fence), fence


# Rendering


def write_all(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow], refused: list[ChatTemplateUnusable]
) -> Iterator[Written]:
    """Render all rows; appends to `refused` the error of each row that the template refuses."""
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
    """Render a row as one text, or as one text per answer; none if the template refuses it."""
    if "text" in row:
        return [raw(tokenizer, controls, row["text"], index)]
    messages, tools, fence = controls.fence_in(row["messages"], row.get("tools", []))
    try:
        answers = [answer(tokenizer, controls, messages[: end + 1], tools) for end in answered(messages)]
        check_fences([part.text for part in answers], fence)
    except ChatTemplateUnusable as error:
        refused.append(ChatTemplateUnusable(f"row {index + 1}: {error.message}", hint=error.hint))
        return []
    if not answers:
        raise NoLabelTokens(f"row {index + 1} has no answer to learn from", hint="remove it, or add an answer")
    whole = answers[-1].text
    if all(whole.startswith(part.text[: part.end]) for part in answers):
        return [Written(index, whole, [(part.start, part.end) for part in answers], fence)]
    return [Written(index, part.text, [(part.start, part.end)], fence) for part in answers]


def raw(tokenizer: PreTrainedTokenizerBase, controls: Controls, text: str, index: int) -> Written:
    """Raw text between fences, with the BOS token (if used) before it and the EOS token after it."""
    if tokenizer.eos_token is None:
        raise ChatTemplateUnusable(
            "the tokenizer has no eos_token to end raw text with", hint="add it to tokenizer_config.json"
        )
    fence = FENCE * (1 + text.count(FENCE))
    begin = controls.begin
    whole = f"{begin}{fence}{text}{fence}{tokenizer.eos_token}"
    return Written(index, whole, [(len(begin), len(whole))], fence)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every sequence starts with BOS: the tokenizer adds it to text, and the chat template renders it.

    llama.cpp has one setting for both, `add_bos_token`, and its servers remove the BOS that a template has rendered
    before they add theirs. If the tokenizer adds BOS but its chats start without it, the chats win: raw text gets no
    BOS, in training and in the GGUF file.
    """
    bos = tokenizer.bos_token
    if bos is None or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        return False
    return not tokenizer.chat_template or render_prompt(tokenizer, [chat_template.ASKED]).startswith(bos)


def check_fences(texts: list[str], fence: str) -> None:
    """Raise ChatTemplateUnusable if the template has split or escaped a row's text between fences."""
    if fence and any(ESCAPED in text or text.count(fence) % 2 for text in texts):
        raise ChatTemplateUnusable(
            "the chat template splits or escapes a text that has the name of a control token",
            hint="remove that name from the row",
        )


def answered(messages: list[Message]) -> list[int]:
    """Positions of the learned turns: answers and calls that follow another turn."""
    return [i for i, turn in enumerate(messages) if i and learned(turn)]


def answer(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, messages: list[Message], tools: list[Message]
) -> Answer:
    """Render a conversation that ends with an assistant turn, and locate that turn."""
    special = controls.special
    prompt = apply(tokenizer, messages[:-1], tools, special=special, add_generation_prompt=True)
    text = apply(tokenizer, messages, tools, special=special, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise ChatTemplateUnusable(
            "the chat template's assistant turn does not start with its generation prompt", hint=chat_template.HINT
        )
    end = controls.stop(text, len(prompt))
    if end is None:
        raise ChatTemplateUnusable(
            "the chat template ends an assistant turn without a stop token", hint=chat_template.HINT
        )
    return Answer(text, len(prompt), end)


def stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The stop token with which the chat template ends an answer. Raises ChatTemplateMissing, ChatTemplateUnusable."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with chat_template.limit():
        written = answer(tokenizer, Controls(tokenizer), messages, [])
    [tokens] = encodings(tokenizer, [written.text[: written.end]], plain=False)
    return int(tokens.ids[-1])


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """Render the conversation with the generation prompt."""
    with chat_template.limit():
        return apply(tokenizer, messages, add_generation_prompt=True)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[Message]],
    tools: Sequence[list[Message]] | None = None,
) -> list[list[int]]:
    """The token ids of each conversation with its tools and its generation prompt.

    Raises ChatTemplateMissing, ChatTemplateUnusable.
    """
    controls = Controls(tokenizer)
    given = tools or [[]] * len(conversations)
    with chat_template.limit():
        written = [write_prompt(tokenizer, controls, *each) for each in zip(conversations, given, strict=True)]
    return [tokens.ids for tokens in tokenize(tokenizer, written)]


def write_prompt(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, messages: list[Message], tools: list[Message]
) -> Written:
    messages, tools, fence = controls.fence_in(messages, tools)
    text = apply(tokenizer, messages, tools, add_generation_prompt=True)
    check_fences([text], fence)
    return Written(0, text, [], fence)


def answer_text(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Message]) -> str:
    """The last turn as its template writes it, decoded as a generated answer is: without control and stop tokens."""
    controls = Controls(tokenizer)
    messages, tools, fence = controls.fence_in(messages, tools)
    with chat_template.limit():
        last = answer(tokenizer, controls, messages, tools)
    written = Written(0, last.text, [(last.start, last.end)], fence)
    example = labelled(written, next(iter(tokenize(tokenizer, [written]))))
    ids = [token for token, label in zip(example.ids, example.labels, strict=True) if label]
    return str(tokenizer.decode(ids[:-1], skip_special_tokens=True))


def render(tokenizer: PreTrainedTokenizerBase, row: ChatRow) -> str:
    """Render a whole row: its conversation, or its raw text without BOS and EOS."""
    if "text" in row:
        return str(row["text"])
    with chat_template.limit():
        return apply(tokenizer, row["messages"], row.get("tools", []), add_generation_prompt=False)


def apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: Sequence[Message] = (),
    *,
    special: Mapping[str, Any] | None = None,
    add_generation_prompt: bool,
) -> str:
    """Render messages and tools with the tokenizer's chat template, in the sandbox; `special`: its special tokens."""
    template = template_of(tokenizer)
    if not template:
        raise ChatTemplateMissing("the tokenizer has no chat template", hint=chat_template.HINT)
    return chat_template.render(
        template,
        messages,
        special=tokenizer.special_tokens_map if special is None else special,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
    )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's (default) chat template; empty if there is none."""
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
    """Tokenize texts without adding special tokens; if `plain`, control tokens' names are plain text."""
    if not texts:
        return []
    batch = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain, verbose=False)
    return list(batch.encodings)


def joined(encodings: list[Encoding], pieces: list[str], fence: str) -> Tokens:
    """Join the tokens of a text's pieces; character positions count from the start of the text."""
    if len(encodings) == 1:
        return Tokens(encodings[0].ids, characters_of(encodings[0]))
    starts = accumulate((len(piece) + len(fence) for piece in pieces[:-1]), initial=0)
    characters = [characters_of(encoding) + start for encoding, start in zip(encodings, starts, strict=True)]
    return Tokens([token for encoding in encodings for token in encoding.ids], np.concatenate(characters))


def characters_of(encoding: Encoding) -> NDArray[np.int64]:
    """(tokens, 2): each token's character range. Three times as fast as an array of tuples."""
    return np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding)).reshape(-1, 2)
