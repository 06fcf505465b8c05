"""Refs to rows: sources as they were resolved, curated and split datasets, tokens."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Record
from backprop_core.schema.refs.artifact import ArtifactRef, Digest
from backprop_core.schema.specs.curation import CurationSpec

PREFERENCES = ".preferences"  # end of the name of a task that is scored by preferences
Shape = Literal["json-lines", "json-array", "csv", "text", "parquet", "arrow", "arrow-stream", "zip", "unknown"]


class Reading(Record):
    """How to parse a file, decided when the file is found. Compression is detected from the bytes alone."""

    shape: Shape
    encoding: str = Field("utf-8", description="Of its text; of an archive: of text in it without a byte order mark.")
    separator: str | None = Field(None, description="Separator of CSV cells; None: ambiguous.")


class SourceFile(Record):
    """One file of a source directory, named relative to it."""

    name: str
    digest: Digest
    reading: Reading | None = Field(None, description="None in records older than this field.")


class SourceRef(Record):
    """A file of rows as it was when it was hashed, and how to parse it: both identify it. `path` is its location.

    For a directory, `files` lists its files at that time, sorted by name; files added later are not included.
    """

    digest: Digest
    path: str
    files: list[SourceFile] = Field(default_factory=list)
    reading: Reading | None = Field(None, description="For a single file; None in records older than this field.")
    forgotten: list[Digest] = Field([], description="Identities of rows in it that are not read: they were forgotten.")
    restored: list[Digest] = Field([], description="Identities of rows in it that a person took out of quarantine.")

    @property
    def readings(self) -> list[Reading]:
        """How to parse each file, where recorded. It identifies the rows, as the same bytes can be parsed otherwise."""
        found = [file.reading for file in self.files] or [self.reading]
        return [reading for reading in found if reading]


class RowsRef(ArtifactRef):
    """Rows as `rows.jsonl`: canonical JSON, one `{"messages": [...], "tools"?: [...]}` a line, or `{"text": ...}`.

    `passes.json`, if present, lists for each epoch the indices of rows that only some epochs contain (replay).
    """

    artifact: ClassVar[str] = "rows"
    rows: int = Field(ge=0)


class LineageRef(ArtifactRef):
    """What happened to each row of a source: `lineage.parquet`, one line per source row, in the source's order.

    Its columns are row (identity as 64 hex digits, or null), file (null for a single file), unit ("line" or "row"),
    number, outcome ("kept", "dropped" or "quarantined"), reason and detail. `samples.jsonl` has the first few rows that
    each step dropped.
    """

    artifact: ClassVar[str] = "lineage"
    rows: int = Field(ge=0, description="Rows in the source.")


class TokensRef(ArtifactRef):
    """Tokenized rows in `tokens.safetensors`: flat token ids, label positions, lengths, row numbers."""

    artifact: ClassVar[str] = "tokens"
    cut: int = Field(description="Rows shortened to the maximum length.")
    left_out: int = Field(description="Rows or answers left out, mostly because they are too long.")


class DatasetRef(Record):
    """A curated dataset: its training rows and its held-out rows."""

    name: str
    task: str
    train: RowsRef
    heldout: RowsRef
    read: int = Field(ge=0, description="Rows in the source.")
    dropped: dict[str, int] = Field(
        default_factory=dict, description="Dropped rows by reason: malformed, empty or duplicate."
    )
    not_trained: dict[str, int] = Field(default_factory=dict, description="Usable rows not trained on, by reason.")
    preferences: RowsRef | None = Field(
        None,
        description="Its preference rows that are not trained and give away no held-out row, if it has any.",
        json_schema_extra=NO_KEY,
    )
    pairs: int = Field(
        0, description="Training rows that have a chosen and a rejected answer.", json_schema_extra=NO_KEY
    )
    ratings: int = Field(0, description="Training rows whose answer was rated good or bad.", json_schema_extra=NO_KEY)
    preference_task: str | None = Field(
        None, description="Task that its held-out preferences score; None if it has none.", json_schema_extra=NO_KEY
    )
    heldout_preferences: RowsRef | None = Field(
        None, description="Its own held-out preferences, if it trains any.", json_schema_extra=NO_KEY
    )
    only_preferences: bool = Field(
        False, description="Whether all rows of its source are preferences.", json_schema_extra=NO_KEY
    )
    lineage: LineageRef | None = Field(
        None, description="What happened to each row of its source; None in older records.", json_schema_extra=NO_KEY
    )

    @property
    def tasks(self) -> list[str]:
        """The tasks that it scores: its own, and that of its preferences."""
        own = [] if self.only_preferences else [self.task]
        return own + ([self.preference_task] if self.preference_task else [])

    @property
    def held_out(self) -> list[RowsRef]:
        """Its own held-out rows of all kinds."""
        return [self.heldout, *([self.heldout_preferences] if self.heldout_preferences else [])]

    @property
    def learns_answers(self) -> bool:
        """Whether some of its training rows have an answer to learn: not all are preferences."""
        return self.pairs + self.ratings < self.train.rows

    @property
    def judges(self) -> bool:
        """Whether some of its rows are preferences that are trained."""
        return bool(self.pairs or self.ratings)


class Judgments(Record):
    """How many of some rows judge answers."""

    pairs: int = Field(ge=0, description="Rows that have a chosen and a rejected answer.")
    ratings: int = Field(ge=0, description="Rows whose answer was rated good or bad.")


class StepReport(Record):
    """What one curation step found in a source."""

    step: str
    rows: int = Field(ge=0, description="Rows that it looked at.")
    dropped: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    noted: int = Field(ge=0, description="Rows that it kept, changed or flagged.")
    seconds: float = Field(ge=0)


class Curated(Record):
    """One source after curation: its distinct usable rows, sorted by their hash."""

    rows: RowsRef
    read: int = Field(ge=0, description="Rows in the source.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Dropped rows by reason.")
    preferences: RowsRef | None = Field(
        None, description="Its preference rows, if it has any.", json_schema_extra=KEY_IF_SET
    )
    quarantined: RowsRef | None = Field(
        None, description="Rows set apart for a person to look at, if there are any.", json_schema_extra=NO_KEY
    )
    lineage: LineageRef | None = Field(
        None, description="What happened to each row of the source; None in older records.", json_schema_extra=NO_KEY
    )
    steps: list[StepReport] = Field(
        [], description="What each optional step found, in their order.", json_schema_extra=NO_KEY
    )
    first: dict[str, list[str]] = Field(
        {}, description="Places of the first rows of each reason in `dropped`, and of others.", json_schema_extra=NO_KEY
    )

    @property
    def left_out(self) -> dict[str, int]:
        """Rows of the source that are not in `rows`, by reason: dropped, quarantined, or preferences."""
        others = {"quarantined": self.quarantined, "preferences": self.preferences}
        return {**self.dropped, **{name: ref.rows for name, ref in others.items() if ref}}


class Batch(Record):
    """A curated source as one run uses it."""

    name: str
    task: str
    source: Curated
    heldout: RowsRef | None = Field(None, description="Rows of its held-out file; None: held out from its own rows.")
    skip: int = 0
    rows: int | None = None
    last: float | None = Field(
        None, description="Share of its rows to hold out by time; None: by hash.", json_schema_extra=KEY_IF_SET
    )
    whole_questions: bool = Field(
        False,
        description="Whether decontaminate also finds questions that are all template; False in older records.",
        json_schema_extra=KEY_IF_SET,
    )
    trains_preferences: bool = Field(
        False, description="Whether it has preferences that are trained.", json_schema_extra=KEY_IF_SET
    )
    heldout_preferences: RowsRef | None = Field(
        None, description="Preferences of its held-out file, if they are trained.", json_schema_extra=KEY_IF_SET
    )
    curation: CurationSpec = Field(
        CurationSpec(), description="How close a training row may be to one that scores.", json_schema_extra=KEY_IF_SET
    )


def preference_task(task: str) -> str:
    """The task that the held-out preferences of a task score."""
    return f"{task}{PREFERENCES}"


def heldout_of(task: str, heldout: Mapping[str, RowsRef]) -> RowsRef:
    """The held-out rows of a task; its preferences if it has no others."""
    return heldout[task] if task in heldout else heldout[preference_task(task)]


class Split(Record):
    """Which rows a run trains on, and which rows it is scored on."""

    datasets: list[DatasetRef] = Field(description="Datasets to train on, in the order of the runs.")
    heldout: dict[str, RowsRef] = Field(description="Rows used for scoring, by task; the line's earlier tasks first.")
    aside: dict[str, RowsRef] = Field(description="Held-out rows beyond the cap, by task: neither trained nor scored.")
    not_scored: dict[str, int] = Field(
        default_factory=dict, description="Rows of held-out files not scored because the line trained on them, by task."
    )
