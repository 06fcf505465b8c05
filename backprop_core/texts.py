"""Kinds of text that a spec takes."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ROWS_FILE = re.compile(r"\.(json|jsonl|ndjson|csv|tsv|txt|parquet)(\.gz|\.zst)?$", re.IGNORECASE)  # how its name ends
LineName = Annotated[str, Field(pattern=NAME)]


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
