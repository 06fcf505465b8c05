"""What a journal's lines say. Times are in ms since 1970."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter

from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.records import Record
from backprop_core.schema.refs import (
    DatasetSummary,
    Digest,
    ErrorRecord,
    Evaluation,
    Located,
    RunId,
    SourceRef,
    StageRecord,
    Status,
)


class Line(Record):
    """One event of one run."""

    model_config = ConfigDict(ser_json_inf_nan="constants")
    time: int = Field(description="Milliseconds since 1970.")
    run: RunId


class Started(Line):
    """The run starts, or resumes after an interruption."""

    kind: Literal["start"] = "start"
    format: Literal[1] = 1
    line: str
    name: str
    parent: RunId | None
    params: dict[str, str]
    tags: dict[str, str]


class Measured(Line):
    """Values at one step."""

    kind: Literal["metrics"] = "metrics"
    step: int
    values: dict[str, float]


class Tagged(Line):
    """Labels; a later one replaces an earlier one."""

    kind: Literal["tags"] = "tags"
    tags: dict[str, str]


class Inputs(Line):
    """The datasets that the run works on."""

    kind: Literal["inputs"] = "inputs"
    datasets: list[DatasetSummary]
    places: dict[str, str] = Field({}, description="Where they were read, by name; none in older journals.")


class Document(Line):
    """A small JSON artifact."""

    kind: Literal["document"] = "document"
    name: str
    value: JsonValue


class Described(Line):
    """What was made of the run's datasets."""

    kind: Literal["described"] = "described"
    datasets: list[CuratedReport]


class Directory(Line):
    """An artifact of the store."""

    kind: Literal["directory"] = "directory"
    name: str
    artifact: Located


class Evaluated(Line):
    """The current forgetting matrix."""

    kind: Literal["evaluation"] = "evaluation"
    evaluation: Evaluation


class Waited(Line):
    """From `since` until now the run waited for a person, or for a device that another run used."""

    kind: Literal["waited"] = "waited"
    since: int = Field(description="Milliseconds since 1970.")
    on: Literal["person", "device"]


class Ended(Line):
    """The run is over."""

    kind: Literal["end"] = "end"
    status: Status
    error: ErrorRecord | None


class Kept(Line):
    """An artifact that the run needs to be resumed or exported elsewhere: its files are copied when it is sent."""

    kind: Literal["kept"] = "kept"
    artifact: str = Field(description="The kind of artifact.")
    digest: Digest
    path: str
    record: dict[str, JsonValue] = Field(description="Where it came from.")


class KeptSource(Line):
    """Files of rows that the run reads: copied like an artifact."""

    kind: Literal["source"] = "source"
    source: SourceRef


class Staged(Line):
    """A finished stage: its cache record, and what it returned."""

    kind: Literal["staged"] = "staged"
    key: Digest
    record: JsonValue
    result: JsonValue


class Called(Line):
    """A stage was called; it ended at this time."""

    kind: Literal["stage"] = "stage"
    stage: StageRecord


class Checkpointed(Line):
    """The newest checkpoint of an unfinished training, by its stage's key; no path once the training is finished."""

    kind: Literal["checkpoint"] = "checkpoint"
    key: Digest
    path: str | None


AnyLine = (
    Started
    | Measured
    | Tagged
    | Inputs
    | Document
    | Described
    | Directory
    | Evaluated
    | Waited
    | Kept
    | KeptSource
    | Called
    | Staged
    | Checkpointed
    | Ended
)
LINE: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="kind")])
