"""Counts tokens of a sample of rows with the model's tokenizer and chat template, for defaults. No torch."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.data.template_places import carries_more
from backprop_core.data.tool_calls import Turn, strings_in
from backprop_core.errors import ChatTemplateUnusable, ModelLoadFailed, TokenizerMismatch
from backprop_core.models import base as bases
from backprop_core.models import chat_template

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

T = TypeVar("T")
MOST_ROWS, LEAST_ROWS = 1000, 64  # size of a sample
CHARACTERS = 2**20  # of a sample, once it has LEAST_ROWS
LONGEST = 2**14  # characters of a row to tokenize; the rest is extrapolated
BYTES = 2  # per token, without a tokenizer.json: overestimates, so that no rows are cut


class Counted(NamedTuple):
    """Token counts of a row: all, before its first answer, and labels."""

    tokens: int
    before: int
    labels: int


class Text(NamedTuple):
    """A row as text, and the character ranges of its answers."""

    text: str
    spans: list[tuple[int, int]]


class Counter:
    """Counts like training, with the tokenizer and chat template in a model's directory; without them by bytes.

    Raises ModelLoadFailed for an invalid tokenizer.json.
    """

    def __init__(self, directory: Path | None) -> None:
        file = directory / "tokenizer.json" if directory else None
        self._tokenizer = opened(file) if file and file.is_file() else None
        self._template = (bases.template_of(directory) if directory else None) or ""
        self._special = chat_template.named(bases.special_tokens(directory)) if directory else {}
        self._directory = directory
        self._control = control_tokens(self._tokenizer)

    @property
    def exact(self) -> bool:
        """Whether the model's tokenizer is used, rather than a count by bytes."""
        return self._tokenizer is not None

    def count(self, rows: Sequence[ChatRow]) -> list[Counted]:
        """Count each row's tokens. Raises TokenizerMismatch for a token that the model has no embedding for."""
        with chat_template.limit():
            texts = [self._text(row) for row in rows]
        if self._tokenizer is None:
            return [by_bytes(text) for text in texts]
        parts = [text.text[:LONGEST] for text in texts]
        found = self._tokenizer.encode_batch(parts, add_special_tokens=False)
        self._check(found)
        return [by_tokens(text, encoding) for text, encoding in zip(texts, found, strict=True)]

    def _text(self, row: ChatRow) -> Text:
        """The row rendered up to its last answer; just its texts if the template refuses it."""
        if "text" in row:
            text = self._plain(row["text"])
            return Text(text, [(0, len(text))])
        if carries_more(row):
            return self._rich(self._plain_in(row["messages"]), self._plain_in(row.get("tools", [])))
        turns = [{**turn, "content": self._plain(turn["content"])} for turn in row["messages"]]
        answers = [place for place, turn in enumerate(turns) if place and turn["role"] == "assistant"]
        if not answers:
            return Text("".join(turn["content"] for turn in turns), [])
        try:
            whole = self._render(turns[: answers[-1] + 1], begins=False)
            start = len(self._render(turns[: answers[0]], begins=True))
        except ChatTemplateUnusable:
            whole = "".join(turn["content"] for turn in turns)
            start = sum(len(turn["content"]) for turn in turns[: answers[0]])
        return Text(whole, list(spans(whole, [turns[place]["content"].strip() for place in answers], start)))

    def _rich(self, turns: list[Turn], tools: list[Turn]) -> Text:
        """A row with tools, calls or reasoning, rendered once for each answer."""
        answers = [place for place, turn in enumerate(turns) if place and learned(turn)]
        try:
            spans = [
                (len(self._render(turns[:place], tools, begins=True)), len(self._render(turns[: place + 1], tools)))
                for place in answers
            ]
            whole = self._render(turns[: answers[-1] + 1] if answers else turns, tools)
        except ChatTemplateUnusable:
            return Text("".join(chain.from_iterable(map(strings_in, [*tools, *turns]))), [])
        return Text(whole, spans)

    def _plain_in(self, value: Any) -> Any:
        """A JSON value with the names of control tokens in its texts broken up."""
        match value:
            case str():
                return self._plain(value)
            case list():
                return [self._plain_in(item) for item in value]
            case dict():
                return {name: self._plain_in(item) for name, item in value.items()}
        return value

    def _plain(self, text: str) -> str:
        """Break up control tokens' names in a text, as in a row they are tokenized as plain text."""
        return self._control.sub(lambda name: f"{name[0][:1]} {name[0][1:]}", text) if self._control else text

    def _render(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), *, begins: bool = False) -> str:
        text, special = self._template, self._special
        return chat_template.render(text, turns, special=special, add_generation_prompt=begins, tools=tools)

    def _check(self, found: Sequence["Encoding"]) -> None:
        """Raise TokenizerMismatch for a token that the model has no embedding for."""
        assert self._directory and self._tokenizer
        size = vocabulary(self._directory)
        largest = max((max(encoding.ids, default=0) for encoding in found), default=0)
        if size is not None and largest >= size:
            raise TokenizerMismatch(
                f"{self._directory}: the tokenizer produces token {largest}, "
                f"{self._tokenizer.id_to_token(largest)!r}, but the model has only {size} embeddings",
                hint=bases.OTHER_TOKENIZER,
            )


def sample(items: Iterable[T], usable: Callable[[T], ChatRow | None]) -> tuple[list[ChatRow], int]:
    """A deterministic random sample of usable rows, and about how many there are; `usable` sees only what is drawn.

    The sample has all rows if they are few, fewer if they are long.
    """
    drawn = Reservoir[T](MOST_ROWS)
    for item in items:
        drawn.add(item)
    rows = [row for item in drawn.held if (row := usable(item))]
    return fewer_if_long(rows), round(drawn.count * len(rows) / max(1, len(drawn.held)))


def fewer_if_long(drawn: Sequence[ChatRow]) -> list[ChatRow]:
    """Drawn rows in random order: all, or LEAST_ROWS and more until they have CHARACTERS."""
    taken: list[ChatRow] = []
    characters = 0
    for row in random.Random(0).sample(drawn, len(drawn)):
        if characters >= CHARACTERS and len(taken) >= LEAST_ROWS:
            break
        taken.append(row)
        characters += min(LONGEST, sum(map(len, texts(row))))
    return taken


class Reservoir(Generic[T]):
    """At most `most` of the things that are added, each with the same chance. [Vitter 1985, algorithm R]"""

    def __init__(self, most: int) -> None:
        self.held: list[T] = []
        self.count = 0
        self._most, self._chance = most, random.Random(0)

    def add(self, one: T) -> None:
        """Add the next one."""
        self.count += 1
        if self.count <= self._most:
            self.held.append(one)
        elif (place := self._chance.randrange(self.count)) < self._most:
            self.held[place] = one


def texts(row: ChatRow) -> Iterator[str]:
    """The texts of a row."""
    if "text" in row:
        yield row["text"]
    for message in row.get("messages", ()):
        yield message["content"]


def spans(whole: str, answers: Sequence[str], start: int) -> Iterator[tuple[int, int]]:
    """The character range of each answer; the first starts at `start`."""
    yield start, start + len(answers[0])
    for answer in answers[1:]:
        start = max(whole.find(answer, start), start)
        yield start, start + len(answer)


def by_bytes(text: Text) -> Counted:
    """Estimate the counts by bytes, rather too high."""
    labels = sum(size(text.text[start:end]) for start, end in text.spans)
    before = size(text.text[: text.spans[0][0]]) if text.spans else size(text.text)
    return Counted(size(text.text) + 1, before, labels + 1)


def size(text: str) -> int:
    return -(-len(text.encode(errors="surrogatepass")) // BYTES)


def by_tokens(text: Text, encoding: "Encoding") -> Counted:
    """A row's counts, extrapolated from the tokens of its first LONGEST characters."""
    ends = [end for _, end in encoding.offsets]
    more = max(1.0, len(text.text) / LONGEST)
    inside = [sum(start < end <= stop for end in ends) for start, stop in text.spans]
    first = text.spans[0][0] if text.spans else len(text.text)
    before = sum(end <= first for end in ends)
    return Counted(round(more * len(ends)), round(before * max(1.0, first / LONGEST)), round(more * (sum(inside) + 1)))


def opened(file: Path) -> "Tokenizer":
    """Load a model's tokenizer.json. Raises ModelLoadFailed."""
    try:
        return bases.open_tokenizer(file)
    except ValueError as error:
        raise ModelLoadFailed(
            f"{file} is not a valid tokenizer: {error}", hint="download the model's files again"
        ) from error


def control_tokens(tokenizer: "Tokenizer | None") -> re.Pattern[str] | None:
    """Pattern that matches any control token of a tokenizer; None if it has none."""
    added = tokenizer.get_added_tokens_decoder().values() if tokenizer else ()
    names = sorted((token.content for token in added if token.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def vocabulary(directory: Path) -> int | None:
    """Number of the model's embeddings according to its config.json; None if missing."""
    config = bases.read_json(directory / "config.json")
    named = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(named) if named else None
