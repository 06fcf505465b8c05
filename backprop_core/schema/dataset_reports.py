"""What is told of a dataset's rows: those that were dropped, by reason, and what a run made of it."""

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.refs import StepReport


class DroppedSample(Record):
    """A row that curation drops."""

    place: str = Field(description="Its file, and its line or row from 1.")
    detail: str = Field(description="Why, for people.")
    text: str = Field(description="The row as JSON, shortened; empty if it could not be parsed.")


class Dropped(Record):
    """The rows that curation drops, or could drop, for one reason."""

    reason: str
    rows: int
    samples: list[DroppedSample] = Field(description="The first few of them.")


class DroppedRows(Record):
    """The rows of a run's dataset that curation dropped for one reason."""

    reason: str
    rows: int
    first: list[str] = Field(description="Where the first few of them stand.")


class CuratedReport(Record):
    """A dataset of a run: rows by what became of them, and what each curation step found."""

    name: str
    task: str
    digest: str = Field(description="Digest of its training rows.")
    read: int = Field(description="Rows in the source.")
    usable: int = Field(description="Rows after curation.")
    train: int = Field(description="Rows that are trained.")
    heldout: int = Field(description="Rows of its task that score.")
    quarantined: int = 0
    preferences: int = 0
    dropped: list[DroppedRows] = Field(description="The most frequent reason first.")
    not_trained: dict[str, int] = Field(description="Usable rows that are not trained, by reason.")
    steps: list[StepReport] = Field(description="The optional steps, in their order.")
