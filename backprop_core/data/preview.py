"""Shows a few rows as training sees them: rendered with the chat template, with the label tokens and what is cut."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from backprop_core.data import chat_answers, chat_encoding
from backprop_core.data.converted_rows import converted
from backprop_core.data.file_readers import Malformed, Place
from backprop_core.data.forgotten_rows import names
from backprop_core.data.loading import ChatRow
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import MOST_ROWS, Reservoir
from backprop_core.errors import BackpropError, ChatTemplateUnusable, InputNotFound, NoLabelTokens, NoRows
from backprop_core.models.file_tokenizer import FileTokenizer
from backprop_core.schema.records import Record
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec, TooLong

GONE = Malformed("forgotten", "it was forgotten, and is not trained; it is still in the file")


class Span(Record):
    """A part of a rendered row."""

    text: str
    label: bool = Field(description="Whether training learns it.")
    cut: bool = Field(description="Whether it is beyond the maximum length.")


class ShownExample(Record):
    """One example that training makes of a row."""

    spans: list[Span]
    tokens: int = Field(description="All tokens, before cutting.")
    label_tokens: int = Field(description="Label tokens, before cutting.")
    cut_tokens: int = Field(description="Tokens beyond the maximum length.")
    cut_label_tokens: int = Field(description="Label tokens among them.")


class ShownRow(Record):
    """A row and the examples that training makes of it: one, or one for each answer."""

    place: str = Field(description="Its file, and its line or row from 1.")
    examples: list[ShownExample]
    refused: str | None = Field(None, description="Why training cannot use the row.")


class Preview(Record):
    """A few rows of a dataset as training sees them."""

    data: str
    model: str = Field(description="The base whose tokenizer and chat template are used.")
    format: str
    rows_read: int
    max_length: int
    too_long: TooLong = Field("drop", description="What training does with an example whose labels do not fit.")
    rows: list[ShownRow]


class Chosen(NamedTuple):
    """Some rows of a source with their places, how many rows it has, and a sample of all its chat rows."""

    format: str
    read: int
    rows: list[tuple[Place, ChatRow | Malformed]]
    sample: Reservoir[ChatRow]


def chosen(
    source: SourceRef,
    spec: DatasetSpec,
    *,
    rows: int = 3,
    number: int | None = None,
    forgotten: Collection[str] = (),
) -> Chosen:
    """Choose `rows` rows of a source, a deterministic random sample, or those at line or row `number`.

    A row whose identity is `forgotten` is not drawn, and is not shown at its number.
    Raises NoRows if no row can be used, InputNotFound if there is none at `number`, and what `converted` raises.
    """
    form, every = converted(source, spec)
    read, drawn, sample = 0, Reservoir[tuple[int, Place, ChatRow]](rows), Reservoir[ChatRow](MOST_ROWS)
    there: list[tuple[Place, ChatRow | Malformed]] = []
    for read, (item, found) in enumerate(every, 1):
        row = remembered(found, forgotten)
        if item.place.number == number:
            there.append((item.place, row))
        if not isinstance(row, Malformed):
            drawn.add((read, item.place, row))
            sample.add(row)
    if number is None:
        there = [(place, row) for _, place, row in sorted(drawn.held, key=itemgetter(0))]
    if not there:
        raise missing(spec.path, number, read)
    return Chosen(form, read, there, sample)


def preview(
    name: str,
    found: Chosen,
    tokenizer: FileTokenizer,
    *,
    model: str,
    max_length: int,
    too_long: TooLong = "drop",
    refusals: Refusals | None = None,
    forgotten: Collection[str] = (),
) -> Preview:
    """Render rows. `name` and `model` are those of the source and the base; `forgotten` as in `chosen`.

    Raises ChatTemplateMissing, ChatTemplateUnusable.
    """
    return Preview(
        data=name,
        model=model,
        format=found.format,
        rows_read=found.read,
        max_length=max_length,
        too_long=too_long,
        rows=[
            shown(str(place), remembered(tried(row, refusals), forgotten), tokenizer, max_length)
            for place, row in found.rows
        ],
    )


def missing(name: str, number: int | None, read: int) -> BackpropError:
    if number is None:
        return NoRows(f"{name}: none of {read} rows can be used", hint="`backprop data report` says why")
    return InputNotFound(f"{name} has no row at line or row {number}", hint=f"it has {read} rows; count from 1")


def remembered(row: ChatRow | Malformed, forgotten: Collection[str]) -> ChatRow | Malformed:
    """A row, or that it was forgotten."""
    return GONE if forgotten and not isinstance(row, Malformed) and names(row) & set(forgotten) else row


def tried(row: ChatRow | Malformed, refusals: Refusals | None) -> ChatRow | Malformed:
    """A row as training is to see it, or why curation drops it."""
    return row if refusals is None or isinstance(row, Malformed) else next(refusals([row]))


def shown(place: str, row: ChatRow | Malformed, tokenizer: Any, max_length: int) -> ShownRow:
    """One row, rendered. Raises ChatTemplateMissing."""
    if isinstance(row, Malformed):
        return ShownRow(place=place, examples=[], refused=str(row))
    refused: list[ChatTemplateUnusable] = []
    try:
        written = list(chat_answers.write_all(tokenizer, [row], refused))
    except NoLabelTokens:
        return ShownRow(place=place, examples=[], refused="it has no answer to learn from")
    if refused:
        return ShownRow(place=place, examples=[], refused=refused[0].message.partition(": ")[2])
    tokens = chat_encoding.tokenize(tokenizer, written)
    examples = [example(*pair, max_length) for pair in zip(written, tokens, strict=True)]
    return ShownRow(place=place, examples=examples)


def example(written: chat_answers.Written, tokens: chat_encoding.Tokens, max_length: int) -> ShownExample:
    """One example with its label tokens and what is cut, as `chat_encoding.encode` labels and cuts it."""
    labels = chat_encoding.labelled(written, tokens).labels
    return ShownExample(
        spans=list(spans(written, tokens, labels, max_length)),
        tokens=len(labels),
        label_tokens=sum(labels),
        cut_tokens=max(0, len(labels) - max_length),
        cut_label_tokens=sum(labels[max_length:]),
    )


def spans(
    written: chat_answers.Written, tokens: chat_encoding.Tokens, labels: Sequence[bool], max_length: int
) -> Iterator[Span]:
    """The text without fences, in parts that are equally labelled and cut.

    A character without a token, such as a space that the tokenizer drops, is shown like the one before it.
    """
    text, fence = written.text, written.fence
    kind_c = np.full(len(text), -1, dtype=np.int8)  # of each character: 1 label, 2 cut, 3 both
    for index, (start, end) in enumerate(tokens.characters_t2.tolist()):
        kind_c[start:end] = labels[index] + 2 * (index >= max_length)
    hidden_c = np.zeros(len(text), dtype=bool)
    place = text.find(fence) if fence else -1
    while place >= 0:
        hidden_c[place : place + len(fence)] = True
        place = text.find(fence, place + len(fence))
    kinds = filled(kind_c[~hidden_c].tolist())
    visible = "".join(character for character, hidden in zip(text, hidden_c.tolist(), strict=True) if not hidden)
    begin = 0
    for kind, part in groupby(kinds):
        end = begin + sum(1 for _ in part)
        yield Span(text=visible[begin:end], label=bool(kind & 1), cut=bool(kind & 2))
        begin = end


def filled(kinds: Sequence[int]) -> list[int]:
    """The kinds, each unknown one (-1) as the one before it."""
    known, found = 0, []
    for kind in kinds:
        known = kind if kind >= 0 else known
        found.append(known)
    return found
