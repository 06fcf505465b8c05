"""Trying the models of a line: which there are, questions from a file, corrected answers as rows."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from backprop_core.data.loading import ChatRow, find, read_rows
from backprop_core.data.written_rows import format_in, written
from backprop_core.errors import InputValidationFailed, RunUnknown
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import AdapterRef, RunResult
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from tasks.runs import resolve_earlier
from tasks.runs.line_renaming import directory_of_rows
from tasks.runs.model_session import Model, Turn, model_of
from tasks.runs.readable_records import of_line

LIVE, CANDIDATE, BASE = "live", "candidate", "base"
PLAIN = {"role", "content", "weight"}  # fields of a turn that a question can have


class Contender(NamedTuple):
    """A model of a line that can be asked."""

    name: str
    run_id: str | None  # of the run that made it; None for the base
    model: Model


def contenders(line: str, wanted: Sequence[str], waits: RunResult | None, config: Settings) -> list[Contender]:
    """The models of a line: `live`, `candidate` (what `waits` for a person), `base`, `v3`; by default the first three.

    Each is there once. Raises RunUnknown, ArtifactDamaged.
    """
    store = Store(config.store_path)
    with of_line(line):
        live = Lines(store).champion(line)
        there = [*([LIVE] if live else []), *([CANDIDATE] if waits else []), BASE]
        found = [contender(line, name, waits, store) for name in wanted or there]
        return list({each.name: each for each in found}.values())  # the live version may be named by its number too


def contender(line: str, name: str, waits: RunResult | None, store: Store) -> Contender:
    """One of them. Raises RunUnknown."""
    live = Lines(store).champion(line)
    match name:
        case "candidate" if waits and waits.merged:
            made = resolve_earlier.by(waits.run_id, AdapterRef(digest=waits.merged.digest, kind="merged"), store)
            return Contender("Candidate", waits.run_id, Model(made.base, made.adapter, made.spec.training))
        case "base" if live or waits:
            other = contender(line, LIVE if live else CANDIDATE, waits, store)
            return Contender("Base", None, other.model.alone)
        case "live" if live:
            return version(line, live, f"Live v{live}", store)
        case _ if re.fullmatch(r"v[0-9]{1,6}", name):
            return version(line, int(name[1:]), f"Live {name}" if name == f"v{live}" else name, store)
    raise RunUnknown(f"line {line} has no {name[:20]} to ask", hint="use live, candidate, base, or a version like v1")


def version(line: str, number: int, name: str, store: Store) -> Contender:
    """A version of the line. Raises RunUnknown."""
    return Contender(name, Lines(store).version(line, number).run_id, model_of(f"{line}@{number}", store))


def questions(data: str, most: int) -> list[list[Turn]]:
    """The conversations of a file of rows, each up to its last answer; the first `most`. A raw text is one question.

    Raises InputValidationFailed for rows with tools, and what reading the file raises.
    """
    spec = DatasetSpec(path=data)
    with TemporaryDirectory() as scratch:
        rows = read_rows(find(spec, scratch=Path(scratch)), spec).rows[:most]
    return [question(row, number) for number, row in enumerate(rows, 1)]


def question(row: ChatRow, number: int) -> list[Turn]:
    """A row up to its last answer. Raises InputValidationFailed."""
    if "text" in row:
        return [{"role": "user", "content": row["text"]}]
    turns = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
    if "tools" in row or not turns or any(turn.keys() - PLAIN or turn["role"] == "tool" for turn in turns):
        raise InputValidationFailed(f"row {number} asks nothing, or uses tools", hint="use rows of plain questions")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def as_row(line: str, messages: list[Turn], config: Settings) -> bytes:
    """A corrected conversation as a file of one row, in the format of the rows that were added to the line before.

    Raises ConfigInvalid if that format cannot say it.
    """
    row = written(format_in(directory_of_rows(line, config)), messages)
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
