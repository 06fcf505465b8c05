"""What the page "Try it" sends and gets."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from backprop_core.schema.records import Record
from tasks.runs.answer_votes import Verdict

LONGEST = 20_000  # characters of a text
MOST, MOST_MODELS, MOST_TURNS = 50, 4, 100
TOKENS = 1024  # of an answer

Text = Annotated[str, Field(min_length=1, max_length=LONGEST)]


class TryTurn(Record):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


Conversation = Annotated[list[TryTurn], Field(min_length=1, max_length=MOST_TURNS)]


class TryRequest(Record):
    """What to ask, and which models."""

    conversations: list[Conversation] = Field(
        min_length=1, max_length=MOST, description="Each ends with what is asked, a turn of the user."
    )
    models: list[str] = Field(
        [], max_length=MOST_MODELS, description="live, candidate, base or v3, …; by default the first three."
    )
    blind: bool = Field(False, description="Ask the first two models, in an order and without names until the vote.")
    seed: int | None = Field(None, ge=0, lt=2**31, description="Of that order and of sampling; default: drawn.")
    max_new_tokens: int = Field(256, ge=1, le=TOKENS)
    temperature: float = Field(0.0, ge=0, le=2)

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if any(turns[-1].role != "user" for turns in self.conversations):
            raise ValueError("the last turn of a conversation is not the user's")
        return self


class TryVote(Record):
    """A person's verdict."""

    question: int = Field(ge=0, description="Number of the conversation, from 0.")
    better: int | None = Field(description="Column of the better answer; null: they are the same.")
    note: str = Field("", max_length=1000)


class TryRow(Record):
    """A corrected answer, to be added to the data of the line."""

    question: int = Field(ge=0)
    answer: Text


class TryAnswer(Record):
    """One model's answer."""

    name: str | None = Field(description="Null while it is hidden.")
    text: str
    done: bool
    stopped: bool = Field(description="Whether it ended by itself, not at the limit of tokens.")


class TryState(Record):
    """A trial, as far as it is."""

    id: str
    line: str
    asked: datetime
    seed: int
    blind: bool
    compared: list[str] | None = Field(description="The two models that a vote compares; null if there is only one.")
    answers: list[list[TryAnswer]] = Field(description="By question and column.")
    votes: list[Verdict | None] = Field(description="On the first of `compared`, by question; null before.")
    ended: bool
    error: dict[str, str] | None = Field(description="Why it ended early: code, message, hint.")
