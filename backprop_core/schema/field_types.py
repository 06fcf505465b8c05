"""Kinds of text that a spec takes."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from backprop_core.errors import ConfigInvalid

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHOWN = 60  # characters of a refused name that an error repeats
ROWS_FILE = re.compile(r"\.(json|jsonl|ndjson|csv|tsv|txt|parquet)(\.gz|\.zst)?$", re.IGNORECASE)  # how its name ends


def line_name(name: str) -> str:
    """The name of a line, where it comes from outside of a spec. Raises ConfigInvalid if no line can be called so."""
    if not re.fullmatch(NAME, name):
        raise ConfigInvalid(
            f"no line can be called {name[:SHOWN]!r}",
            hint="use small letters, digits, '.', '_' and '-', at most 63, the first one a letter or a digit",
        )
    return name


def addressable(place: str) -> str:
    """The path or address, or ValueError if it begins as an address and is none."""
    urlsplit(place)
    return place


Precision = Literal["fp32", "bf16", "nf4"]  # of a base in memory, once `auto` is resolved
PathOrAddress = Annotated[str, AfterValidator(addressable)]
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+://")  # and chains of them
LineName = Annotated[str, Field(pattern=NAME)]


def is_address(path: str) -> bool:
    """Whether it is an address, and no path here: a path is never taken apart, whatever characters are in it."""
    return bool(ADDRESS.match(path))


def compiles(pattern: str | None) -> str | None:
    """The pattern, or ValueError if it is no regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


def quotable(text: str) -> str:
    """A Modelfile has no way to write three quotation marks."""
    if '"""' in text or "\0" in text:
        raise ValueError("three quotation marks in a row, or NUL")
    return text


Prose = Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(quotable)]
