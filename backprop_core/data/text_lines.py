"""Decodes text as a stream, line by line; what is in another encoding is an error with its line."""

import codecs
import io
from collections.abc import Iterator

from backprop_core.errors import InputValidationFailed

SAVE = "save the file as UTF-8, or name its encoding with datasets.N.encoding"
SAMPLE = 4096  # bytes
WIDE = 1 / 3  # minimum share of zero bytes in UTF-16 and UTF-32 text of most languages
LONGEST = 1 << 25  # characters or bytes of a line, and of an element of a JSON array
MARKED = ("utf-8-sig", "utf-16", "utf-32")  # found by a byte order mark


def text_lines(stream: io.BufferedReader, encoding: str, name: str, *, ends: str = "") -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its end, which is `ends`, or any usual line end.

    Of a line with more than LONGEST characters, only the first LONGEST + 1 are there. Raises InputValidationFailed for
    another encoding, with the line.
    """
    refuse_unmarked(stream, encoding, name)
    number, rest = 0, False
    text = io.TextIOWrapper(stream, encoding, newline=ends)
    try:
        while line := text.readline(LONGEST + 1):
            if not rest:
                number += 1
                yield number, line
            rest = is_cut(line, ends)
    except UnicodeError as error:
        raise not_decoded(error, encoding, number + 1, name) from error


def is_cut(line: str, ends: str) -> bool:
    """Whether a line goes on after its first LONGEST + 1 characters."""
    return len(line) > LONGEST and line[-1] not in (ends or "\r\n")


def without_zeros(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, str]]:
    """The same lines. Raises InputValidationFailed for a zero byte, with its line."""
    for number, line in lines:
        if "\0" in line:
            what = "a zero byte, as in UTF-16 without a byte order mark, or in a binary file"
            raise InputValidationFailed(f"{name}, line {number}: {what}", hint=SAVE)
        yield number, line


def text_chunks(stream: io.BufferedReader, encoding: str, name: str) -> Iterator[str]:
    """The text in parts, of about the buffer's size. Raises InputValidationFailed for another encoding."""
    refuse_unmarked(stream, encoding, name)
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    try:
        while data := stream.read1():
            text = decoder.decode(data)
            yield text
            line += text.count("\n")
        yield decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise not_decoded(error, encoding, line, name) from error


def refuse_unmarked(stream: io.BufferedReader, encoding: str, name: str) -> None:
    """Raise InputValidationFailed for what is probably UTF-16 or UTF-32 without a byte order mark."""
    sample = stream.peek(1)[:SAMPLE]
    if encoding == "utf-8" and sample.count(0) > WIDE * len(sample):
        what = "every other byte is zero, as in UTF-16 without a byte order mark"
        raise InputValidationFailed(f"{name}, line 1: {what}", hint=SAVE)


def not_decoded(error: UnicodeError, encoding: str, line: int, name: str) -> InputValidationFailed:
    """The error for text that is in another encoding; the codec's input begins on `line`."""
    if isinstance(error, UnicodeDecodeError):
        codec = error.encoding if error.encoding.startswith("utf") else encoding
        line += error.object[: error.start].decode(codec, errors="ignore").count("\n")
    if encoding.startswith("utf-8") and isinstance(error, UnicodeDecodeError):
        begin = error.object.rfind(b"\n", 0, error.start) + 1
        what = no_utf8(error.object[begin : error.end])
    else:
        says = "its byte order mark" if encoding in MARKED else "datasets.N.encoding"
        what = f"not {encoding.upper()}, although {says} says so"
    return InputValidationFailed(f"{name}, line {line}: {what}", hint=SAVE)


def no_utf8(line: bytes) -> str:
    """Describe why a line is not UTF-8: the first bad byte, and its meaning in Windows-1252."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1]
        meant = byte.decode("cp1252", errors="ignore")
        western = f", {meant!r} in Windows-1252 (cp1252) and Latin-1" if meant else ""
        return f"not UTF-8: byte 0x{byte.hex()} at column {error.start + 1}{western}"
    return "not UTF-8"
