"""What people think of a version's or candidate's answers: votes beside the versions of a line, append-only.

A vote belongs to the run that made the version, so a candidate keeps its votes when it becomes one.
"""

import uuid
from datetime import datetime
from typing import Literal

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.refs import RunId
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store, write_atomic

Verdict = Literal["better", "same", "worse"]


class Vote(Record):
    """A person's verdict on an answer beside another model's."""

    format: Literal[1] = 1
    run_id: RunId = Field(description="The run that made the version or candidate.")
    against: str = Field(description="What it was compared with: a version, or the base.")
    verdict: Verdict
    note: str = ""
    by: str = Field("", description="The person's name, if it is known.")
    at: datetime
    blind: bool = Field(description="Whether the names were hidden until the vote.")
    seed: int = Field(description="Of the order in which the answers were shown.")
    messages: list[dict[str, str]] = Field(description="The conversation.")
    answer: str
    other: str = Field(description="The answer of what it was compared with.")
    generation: GenerationSpec


def add(line: str, vote: Vote, store: Store) -> None:
    """Append a vote."""
    write_atomic(store.layout.line(line).vote(vote.run_id, uuid.uuid4().hex), vote.model_dump_json())


def votes(line: str, run_id: str, store: Store) -> list[Vote]:
    """The votes on what a run made, oldest first."""
    files = store.layout.line(line).votes_on(run_id).glob("[!.]*.json")
    return sorted((Vote.model_validate_json(path.read_bytes()) for path in files), key=lambda vote: vote.at)
