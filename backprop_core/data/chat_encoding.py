"""Tokenizes chat rows with the tokenizer's chat template, and marks the label tokens (loss mask).

Labels are the tokens of assistant turns that are learned, text, reasoning and calls: after the generation prompt, up to
and including the stop token, without the newline after it. What a tool answers is never a label. In raw text every
token is a label, including the end-of-sequence token appended to it.

`chat_answers` writes a row as text, `control_tokens` keeps what a row says apart from what the template says.
"""

from __future__ import annotations  # the tokenizer's type is of transformers, which the parent does not import

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import accumulate, chain, groupby, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from backprop_core.data.chat_answers import Written, answer, write_all, write_prompt
from backprop_core.data.chat_rendering import Message
from backprop_core.data.control_tokens import Controls
from backprop_core.data.label_marks import LabelMarks
from backprop_core.data.long_rows import Example, first, fits, shorter
from backprop_core.data.row_formats import ChatRow
from backprop_core.errors import ChatTemplateUnusable, NoLabelTokens
from backprop_core.models import chat_template
from backprop_core.runtime import garbage
from backprop_core.schema.specs import Limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1024  # texts tokenized at once


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


class Tokens:
    """The tokens of a text, which was tokenized in pieces; `starts` are the pieces' first characters in the text."""

    def __init__(self, pieces: Sequence[Encoding], starts: Sequence[int] = (0,)) -> None:
        self._pieces, self._starts = pieces, starts
        self.ids: list[int] = pieces[0].ids if len(pieces) == 1 else [token for piece in pieces for token in piece.ids]

    @cached_property
    def characters_t2(self) -> NDArray[np.int64]:
        """Each token's character range (start, end)."""
        pairs = zip(self._pieces, self._starts, strict=True)
        return np.concatenate([characters_of(piece) + start for piece, start in pairs])

    def of(self, start: int, end: int) -> Iterable[range]:
        """The positions of the tokens that have a character of this range, which is not empty."""
        if len(self._pieces) == 1 and (some := within(self._pieces[0], start, end)):
            return [some]
        first_t, end_t = self.characters_t2.T
        return (range(at, at + 1) for at in np.flatnonzero((end_t > start) & (first_t < end)).tolist())


@garbage.none()
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
    written = write_all(tokenizer, rows, refused)
    limit = max_length if isinstance(max_length, Limit) else Limit(tokens=max_length)
    examples = Examples()
    with ThreadPoolExecutor(1) as pool:
        for index, group in groupby(label_all(tokenizer, written, pool), key=lambda example: example.row):
            made = list(group)
            if limit.too_long is None or all(fits(example, limit.tokens) for example in made):
                examples.add(made, limit.tokens, counts=limit.too_long is None)
            else:
                again = partial(encoded, tokenizer, pool, index)
                short = shorter(rows[index], made, limit.tokens, limit.too_long, again)
                examples.extend(short.examples)
                examples.cut += bool(short.examples)
                examples.left_out += short.left_out
    if refused and len(refused) == len(rows):
        raise refused[0]
    if rows and not examples:
        raise no_labels(len(rows), limit, cut=bool(examples.cut or examples.left_out))
    examples.left_out += len(refused)
    return examples


def encoded(tokenizer: PreTrainedTokenizerBase, pool: ThreadPoolExecutor, index: int, row: ChatRow) -> list[Example]:
    """The examples of one row at their full length; none if the template refuses it."""
    written = [text._replace(row=index) for text in write_all(tokenizer, [row], [])]
    return pool.submit(label_batch, tokenizer, LabelMarks(tokenizer), written).result()


def label_all(
    tokenizer: PreTrainedTokenizerBase, written: Iterable[Written], pool: ThreadPoolExecutor
) -> Iterator[Example]:
    """The example of each text at its full length.

    A batch is tokenized while the next one is rendered: the tokenizer does not hold Python's lock meanwhile. The one
    thread of `pool` alone uses the tokenizer, as whether control tokens are plain text is a setting of it.
    """
    marks, texts = LabelMarks(tokenizer), iter(written)
    before: Future[list[Example]] | None = None
    while batch := list(islice(texts, BATCH)):
        garbage.young()  # some templates leave ninety objects a row in cycles
        begun = pool.submit(label_batch, tokenizer, marks, batch)
        yield from before.result() if before else ()
        before = begun
    yield from before.result() if before else ()


def label_batch(tokenizer: PreTrainedTokenizerBase, marks: LabelMarks, batch: Sequence[Written]) -> list[Example]:
    """The examples of some texts."""
    found = marks.examples(batch)
    rest = [text for text, example in zip(batch, found, strict=True) if example is None]
    others = map(labelled, rest, tokenize(tokenizer, rest))
    return [next(others) if example is None else example for example in found]


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
    labels = [False] * len(tokens.ids)
    for span in written.spans:
        for some in tokens.of(*span):
            labels[some.start : some.stop] = [True] * len(some)
    labels[:1] = [False] * len(labels[:1])
    return Example(tokens.ids, labels, written.row)


def stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The stop token with which the chat template ends an answer. Raises ChatTemplateMissing, ChatTemplateUnusable."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with chat_template.limit():
        written = answer(tokenizer, Controls(tokenizer), messages, [])
    [tokens] = encodings(tokenizer, [written.text[: written.end]], plain=False)
    return int(tokens.ids[-1])


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
    backend = tokenizer.backend_tokenizer  # transformers would make lists of ids and masks of each text first
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = plain
    return list(backend.encode_batch(texts, add_special_tokens=False))


def joined(pieces: list[Encoding], parts: list[str], fence: str) -> Tokens:
    """The tokens of a text's pieces, between which its fences are left out."""
    return Tokens(pieces, list(accumulate((len(part) + len(fence) for part in parts[:-1]), initial=0)))


def within(encoding: Encoding, start: int, end: int) -> range | None:
    """The tokens that have a character of this range; None if its first or last character has no token.

    Ranges of tokens are in order, so that two questions to the tokenizer replace the list of all ranges, which takes as
    long as a fifth of tokenizing.
    """
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None:
        return None
    while last + 1 < len(encoding) and (characters := encoding.token_to_chars(last + 1)) and characters[0] < end:
        last += 1  # one of several tokens of a character
    return range(first, last + 1)


def characters_of(encoding: Encoding) -> NDArray[np.int64]:
    """(tokens, 2): each token's character range. Three times as fast as an array of tuples."""
    return np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding)).reshape(-1, 2)
