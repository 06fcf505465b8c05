"""String types of spec fields: line names, paths and URLs, regular expressions, text for a Modelfile."""

import codecs
import re
import warnings
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from backprop_core.errors import ConfigInvalid

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHOWN = 60  # characters of a rejected name that an error shows
PACKED = r"\.(gz|zst|bz2|xz)$"  # suffixes of compressed files
ROWS_FILE = re.compile(
    r"(\.(json|jsonl|ndjson|csv|tsv|txt|parquet|arrow|arrows|feather|ipc)(\.(gz|zst|bz2|xz))?|\.zip)$", re.IGNORECASE
)  # suffixes of row files


def line_name(name: str) -> str:
    """Check a line name that does not come from a spec. Raises ConfigInvalid if it is not a valid name."""
    if not re.fullmatch(NAME, name):
        raise ConfigInvalid(
            f"invalid line name {name[:SHOWN]!r}",
            hint="use up to 63 lowercase letters, digits, '.', '_' and '-', starting with a letter or a digit",
        )
    return name


def addressable(place: str) -> str:
    """The path or URL. Raises ValueError for a malformed URL."""
    urlsplit(place)
    return place


Precision = Literal["fp32", "bf16", "nf4"]  # of a base in memory, once `auto` is resolved
PathOrAddress = Annotated[str, AfterValidator(addressable)]
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+://")  # fsspec allows chains of schemes
LineName = Annotated[str, Field(pattern=NAME)]


def is_address(path: str) -> bool:
    """Whether this is a URL rather than a local path."""
    return bool(ADDRESS.match(path))


def is_sql(path: str) -> bool:
    """Whether this is the URL of a database."""
    return path.lower().startswith(("sqlite://", "postgresql://", "postgres://"))


def text_encoding(name: str) -> str:
    """The codec's own name. Raises ValueError for a name that Python has no text encoding for."""
    try:
        known = codecs.lookup(name)
        "a".encode(known.name)
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"not a text encoding: {name[:SHOWN]!r}") from error
    return known.name


Encoding = Annotated[str, AfterValidator(text_encoding)]


def compiles(pattern: str | None) -> str | None:
    """The pattern. Raises ValueError if it is not a valid regular expression."""
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # a set in a set: still a pattern
            re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"not a valid regular expression: {error}") from error
    return pattern


def quotable(text: str) -> str:
    """The text. Raises ValueError for three quotation marks, which a Modelfile cannot express, and for NUL."""
    if '"""' in text or "\0" in text:
        raise ValueError("contains three quotation marks in a row, or NUL")
    return text


Prose = Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(quotable)]
