"""Puts a file of rows into a directory: checked as a run would read it, whole or not at all, and never over another."""

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from backprop_core.data.file_format import reading_of
from backprop_core.data.loading import read_rows
from backprop_core.data.sources import snapshot
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.field_types import ROWS_FILE
from backprop_core.schema.records import Record
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import file_digest, fsync

SUFFIXES = {"json-lines": ".jsonl", "json-array": ".json", "parquet": ".parquet"}  # by what the first bytes show
SHORT = 12  # digits of the digest in a name
STEM = 80  # characters of the source's name in it


class Put(Record):
    """A file of rows that was put into a directory."""

    path: str = Field(description="Where it is now.")
    rows: int = Field(description="Rows that can be read.")
    malformed: int = Field(description="Rows that cannot, at most the allowed share.")
    already_there: bool = Field(description="Whether the same file was there before.")


def put(data: BinaryIO, name: str, directory: Path, spec: DatasetSpec) -> Put:
    """Copy `data`, checked by the rules of `spec`, into a directory; its name there is unique for its bytes.

    `name` is that of its source. Raises what reading the rows raises, with `spec.path` as the name, and OSError.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = ROWS_FILE.search(name)
    part = directory / f".{uuid.uuid4().hex}{known[0].lower() if known else ''}"  # hidden: a run does not see it
    try:
        with part.open("xb") as file:
            shutil.copyfileobj(data, file)
        source = snapshot(str(part), scratch=directory, encoding=spec.encoding)
        parsed = read_rows(source, spec)
        suffix = known[0].lower() if known else suffix_of(part, spec.path)
        target = directory / f"{stem(name, known)}-{file_digest(part)[:SHORT]}{suffix}"
        there = not placed(part, target)
    finally:
        part.unlink(missing_ok=True)
    return Put(path=str(target), rows=len(parsed.rows), malformed=len(parsed.bad), already_there=there)


def placed(part: Path, target: Path) -> bool:
    """Give a complete file its name, unless there is one of that name, which has the same bytes."""
    fsync(part)
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    fsync(target.parent)
    return True


def stem(name: str, suffix: re.Match[str] | None) -> str:
    """The source's name without its suffix, as a file's name in any system."""
    plain = Path(name).name
    cut = plain[: -len(suffix[0])] if suffix else plain
    return re.sub(r"[^A-Za-z0-9._-]+", "-", cut).strip("-.")[:STEM] or "rows"


def suffix_of(file: Path, name: str) -> str:
    """The suffix by which a run reads a file without one. Raises InputValidationFailed for text that could be any."""
    shape = reading_of(file, file.name).shape
    if shape not in SUFFIXES:
        raise InputValidationFailed(
            f"{name} is neither JSON nor Parquet, and has no suffix that says what it is",
            hint="save it as a file that ends in .csv, .tsv, .txt or another known suffix",
        )
    return SUFFIXES[shape]
