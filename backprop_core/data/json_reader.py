"""Reads JSON lines and JSON arrays as streams, row by row.

Stricter than the json module: an object with a duplicate key, and NaN and Infinity, which JSON does not have, make a
row malformed. The array is read by the json module too, on a window of the text, so that a row means the same in both;
ijson would read lone surrogates and numbers otherwise.
"""

import io
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from backprop_core.data.parsed_items import Item, Malformed, Value, at_line, at_row, object_or_malformed
from backprop_core.data.text_lines import LONGEST, no_utf8, refuse_unmarked, text_chunks, text_lines
from backprop_core.errors import InputValidationFailed

HINT = "supported formats: a JSON array of objects, JSON lines, CSV, Parquet, Arrow or .txt, in UTF-8"
SPACE = re.compile(r"[ \t\n\r]*")
LARGEST = f"more than {LONGEST >> 20} MiB"
MARK = b"\xef\xbb\xbf"
CUT = 16  # a syntax error this near to the end of the window may only be due to that end


class NamedTwice(ValueError):
    """A JSON object has a duplicate key; json.loads alone would keep the last value."""


class NotANumber(ValueError):
    """NaN, Infinity or -Infinity."""


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises NamedTwice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise NamedTwice(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return made


def no_number(constant: str) -> NoReturn:
    raise NotANumber(f"not JSON: {constant}")


STRICT = json.JSONDecoder(object_pairs_hook=named_once, parse_constant=no_number)
LOOSE = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # only finds where a value ends


def json_lines(stream: io.BufferedReader, encoding: str, name: str) -> Iterator[Item]:
    """One object per line, parsed when it is needed; empty lines are skipped.

    Raises InputValidationFailed for another marked encoding.
    """
    refuse_unmarked(stream, encoding, name)
    if encoding.startswith("utf-8"):
        yield from utf8_lines(stream)
        return
    for number, line in text_lines(stream, encoding, name, ends="\n"):
        if line.strip():
            yield at_line(number, partial(json_value, line.removesuffix("\n")) if len(line) <= LONGEST else too_long())


def utf8_lines(stream: io.BufferedReader) -> Iterator[Item]:
    """The same from UTF-8, where a line that is in another encoding is a malformed row."""
    if stream.peek(len(MARK)).startswith(MARK):
        stream.read(len(MARK))
    number, rest = 0, False
    while line := stream.readline(LONGEST + 1):
        if not rest:
            number += 1
            if len(line) > LONGEST:
                yield at_line(number, too_long())
            elif line.strip():
                yield at_line(number, partial(utf8_value, line.removesuffix(b"\n")))
        rest = not line.endswith(b"\n")


def too_long() -> Malformed:
    return Malformed("line_too_long", f"a line of {LARGEST}")


def utf8_value(line: bytes) -> Value:
    try:
        return json_value(line.decode())
    except UnicodeDecodeError:
        return Malformed("not_utf8", no_utf8(line))


def json_value(line: str) -> Value:
    """The object in a line of text, or Malformed."""
    try:
        return object_or_malformed(STRICT.decode(line))
    except json.JSONDecodeError as error:
        return Malformed("not_json", f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return refused(error)


def refused(error: Exception) -> Malformed:
    """The row for a value that the json module can read, but that has a duplicate key, NaN, or thousands of digits."""
    if isinstance(error, NamedTwice):
        return Malformed("named_twice", str(error))
    return Malformed("not_json", str(error) if isinstance(error, NotANumber) else f"not JSON: {error}")


def json_array(stream: io.BufferedReader, encoding: str, name: str) -> Iterator[Item]:
    """The elements of one JSON array. Raises InputValidationFailed, with the line, where it is no JSON."""
    window = Window(text_chunks(stream, encoding, name), name)
    window.expect("[")
    number = 0
    if window.first() == "]":
        window.expect("]")
    else:
        while not number or window.expect(",", "]") == ",":
            number += 1
            yield at_row(number, window.value())
    if window.first():
        raise window.error("Extra data", window.position)


class Window:
    """A part of a text: from the first character that was not taken yet to the last one that was read."""

    def __init__(self, chunks: Iterator[str], name: str) -> None:
        self._chunks, self._name = chunks, name
        self._text, self._ended = "", False
        self._line, self._column = (
            1,
            0,
        )  # lines up to the window's first character, and characters before it in its line
        self.position = 0

    def first(self) -> str:
        """The next character that is no space; empty at the end of the text."""
        while True:
            found = SPACE.match(self._text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self._text) or self._ended:
                return self._text[self.position : self.position + 1]
            self._read(1)

    def expect(self, *characters: str) -> str:
        """Take one of these characters. Raises InputValidationFailed if the next one is another."""
        found = self.first()
        if found not in characters or not found:
            raise self.error(f"Expecting {' or '.join(map(repr, characters))}", self.position)
        self.position += 1
        return found

    def value(self) -> Value:
        """Take one JSON value. Raises InputValidationFailed if there is none."""
        self.first()
        while True:
            try:
                value, end = self._decoded()
                if end < len(self._text) or self._ended:
                    self._refuse_longer(end)
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.error(str(error), self.position) from error
            self._refuse_longer(len(self._text))
            size = len(self._text) - self.position
            self._read(min(size, LONGEST + 1 - size))

    def _decoded(self) -> tuple[Value, int]:
        """The value at the position, and where it ends; Malformed if it is one that a row must not be."""
        try:
            value, end = STRICT.raw_decode(self._text, self.position)
            return object_or_malformed(value), end
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            return refused(error), LOOSE.raw_decode(self._text, self.position)[1]

    def _refuse_longer(self, end: int) -> None:
        if end - self.position > LONGEST:
            raise self.error(f"a value of {LARGEST}", self.position)

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - CUT

    def _read(self, count: int) -> None:
        """Drop what was taken, and read at least `count` more characters, unless the text ends."""
        taken = self._text[: self.position]
        self._column = self._column + len(taken) if "\n" not in taken else len(taken) - taken.rfind("\n") - 1
        self._line += taken.count("\n")
        parts = [self._text[self.position :]]
        while count > 0 and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            parts.append(chunk or "")
            count -= len(parts[-1])
        self._text, self.position = "".join(parts), 0

    def error(self, what: str, position: int) -> InputValidationFailed:
        """The error for what stands at this position of the window."""
        before = self._text[:position]
        line = self._line + before.count("\n")
        column = position - before.rfind("\n") if "\n" in before else self._column + position + 1
        return InputValidationFailed(
            f"{self._name}, line {line}: not JSON: {what.removesuffix(' at')} at column {column}", hint=HINT
        )
