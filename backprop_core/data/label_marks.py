"""Finds the label tokens of a rendered text by its control tokens, so that the tokenizer need not track characters.

Tracking them takes a third of tokenizing. A control token of the text is found in the ids by its own id. An answer
begins in the text after the last control token of its generation prompt and a few words, such as `assistant` and a line
feed, and ends with its stop token. If the ids after that control token are those that the words have by themselves, the
answer's first token is the next one: each id writes one text, whatever stands around it. Where that is not so (a token
reaches from the words into the answer, a template without control tokens, a normalizer that drops characters), the
answer is left to be found by characters.
"""

from __future__ import annotations  # the tokenizer's type is of transformers, which the parent does not import

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Encoding

from backprop_core.data.chat_answers import Written
from backprop_core.data.long_rows import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMALIZERS = {"Sequence", "NFC", "Prepend", "Replace", "String"}  # after which each id writes one text
LONGEST = 64  # characters between a control token and the answer


class Answer(NamedTuple):
    """An answer by the numbers of the control tokens around it: after `before` and the ids `head`, up to `last`."""

    before: int
    head: list[int]
    last: int


class Marks(NamedTuple):
    """The ids of the control tokens of a text, in their order, and where the answers are among them."""

    ids: list[int]
    answers: list[Answer]


class LabelMarks:
    """The control tokens of a tokenizer, and the ids of what stands between them and answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        self._ids = {token.content: number for number, token in added.items() if token.special}
        self._names = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))) or r"(?!)")
        kinds = re.findall(r"([A-Za-z]+)\(", repr(self._backend.normalizer))
        self._usable, self._heads = NORMALIZERS.issuperset(kinds), dict[tuple[str, str], list[int] | None]()

    def examples(self, batch: Sequence[Written]) -> list[Example | None]:
        """The examples of some texts; None for one whose answers have to be found by characters."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        marked = [self._marks(written) for written in batch]
        texts = [written.text for written, marks in zip(batch, marked, strict=True) if marks]
        found = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        pairs = zip(batch, marked, strict=True)
        return [example(written.row, next(found).ids, marks) if marks else None for written, marks in pairs]

    def _marks(self, written: Written) -> Marks | None:
        """The marks of a text, if all of its answers have them."""
        if written.fence or not self._usable:
            return None
        found = list(self._names.finditer(written.text))
        answers = [answer for span in written.spans if (answer := self._answer(written.text, span, found))]
        if len(answers) < len(written.spans):
            return None
        return Marks([self._ids[match[0]] for match in found], answers)

    def _answer(self, text: str, span: tuple[int, int], found: Sequence[re.Match[str]]) -> Answer | None:
        """One answer among the control tokens of its text."""
        start, end = span
        before = bisect_right(found, start, key=re.Match.end) - 1
        last = bisect_left(found, end, key=re.Match.end)
        if before < 0 or last == len(found) or found[last].end() != end or start - found[before].end() > LONGEST:
            return None
        head = self._head(found[before][0], text[found[before].end() : start])
        return None if head is None else Answer(before, head, last)

    def _head(self, control: str, words: str) -> list[int] | None:
        """The ids of the words between a control token and an answer; None if not every character has a token there."""
        if (control, words) not in self._heads:
            alone = self._backend.encode(control + words, add_special_tokens=False)
            ends = [len(control), *(end for _, end in alone.offsets[1:])]
            starts = [*(start for start, _ in alone.offsets[1:]), len(control + words)]
            is_whole = alone.ids[:1] == [self._ids[control]] and starts == ends and not self._has_unknown(alone)
            self._heads[control, words] = alone.ids[1:] if is_whole else None
        return self._heads[control, words]

    def _has_unknown(self, encoding: Encoding) -> bool:
        """Whether a token may stand for any text."""
        unknown = getattr(self._backend.model, "unk_token", None)
        return unknown is not None and unknown in encoding.tokens


def example(row: int, ids: list[int], marks: Marks) -> Example | None:
    """A text's example; None if its ids are others than its marks let expect."""
    if any(ids.count(control) != marks.ids.count(control) for control in {*marks.ids}):
        return None  # a name that the tokenizer does not take for the control token, as it is part of a word
    places, place = list[int](), -1
    for control in marks.ids:
        place = ids.index(control, place + 1)
        places.append(place)
    labels = [False] * len(ids)
    for before, head, last in marks.answers:
        begin = places[before] + 1 + len(head)
        if ids[places[before] + 1 : begin] != head:
            return None
        labels[begin : places[last] + 1] = [True] * (places[last] + 1 - begin)
    return Example(ids, labels, row)
