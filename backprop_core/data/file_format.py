"""Detects a row file's format (JSON, CSV, Parquet, …), encoding and separator, from its name and first bytes.

Detected once, when the file is found, and part of the source's identity: the same bytes can be parsed otherwise.
"""

import codecs
import re
from pathlib import Path

from backprop_core.data.csv_reader import separator_of
from backprop_core.data.decompression import first_bytes
from backprop_core.schema.field_types import PACKED
from backprop_core.schema.refs import Reading, Shape

HEAD = 1 << 16  # bytes that are enough to detect format, encoding and separator
MARKS = {  # byte order marks; UTF-32 first, as its mark starts with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


BINARY: dict[bytes, Shape] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow-stream",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # without members
}


def reading_of(file: Path, name: str, *, said: str | None = None) -> Reading:
    """Detect how to parse a file. A damaged one is detected by its name and rejected later. Raises OSError."""
    return reading(first_bytes(file, HEAD), name, said=said)


def reading(head: bytes, name: str, *, said: str | None = None) -> Reading:
    """The same from the first bytes, decompressed. CSV, TSV and text go by name, everything else by content.

    `said` is the encoding of text without a byte order mark.
    """
    encoding = next((known for mark, known in MARKS.items() if head.startswith(mark)), said or "utf-8")
    if shape := next((known for magic, known in BINARY.items() if head.startswith(magic)), None):
        return Reading(shape=shape, encoding=encoding if shape == "zip" else "utf-8")
    text = head.decode(encoding, errors="ignore")
    suffix = Path(re.sub(PACKED, "", name.lower())).suffix
    if suffix in (".csv", ".tsv"):
        return Reading(shape="csv", encoding=encoding, separator="\t" if suffix == ".tsv" else separator_of(text))
    if suffix == ".txt":
        return Reading(shape="text", encoding=encoding)
    first = text.lstrip()[:1]
    if first == "[":
        return Reading(shape="json-array", encoding=encoding)
    lines = first in ("", "{") or suffix in (".jsonl", ".ndjson")
    return Reading(shape="json-lines" if lines else "unknown", encoding=encoding)
