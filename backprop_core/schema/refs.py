"""What exists: frozen records of artifacts and of what a run did. JSON in, JSON out, nothing else."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.records import Record

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Status = Literal["finished", "unchanged", "rejected", "failed", "interrupted", "running"]


class ArtifactRef(Record):
    """A directory in the store, named by the digest of its payload alone: same bytes, same name."""

    artifact: ClassVar[str]
    format: ClassVar[int] = 1
    digest: Digest


def artifacts_in(value: Any) -> Iterator[ArtifactRef]:
    """Every artifact that a record names, however deep it lies."""
    match value:
        case BaseModel():
            if isinstance(value, ArtifactRef):
                yield value
            parts = [getattr(value, name) for name in type(value).model_fields]
        case dict():
            parts = list(value.values())
        case list() | tuple():
            parts = list(value)
        case _:
            return
    for part in parts:
        yield from artifacts_in(part)


class Reading(Record):
    """How the bytes of a file are read, decided when the file is found; what is compressed shows in the bytes alone."""

    shape: Literal["json-lines", "json-array", "csv", "text", "parquet", "unknown"]
    encoding: Literal["utf-8", "utf-8-sig", "utf-16", "utf-32"] = "utf-8"
    separator: str | None = Field(None, description="Of the cells of a CSV; None there: it could be several.")


class SourceFile(Record):
    """One of the files of a source, by its name there."""

    name: str
    digest: Digest
    reading: Reading | None = Field(None, description="None in records that are older than this field.")


class SourceRef(Record):
    """A file of rows as it was when it was hashed, and how it is read: the two name it. `path` is where it lies.

    Of a directory it has the files that were in it then, in the order of their names: what comes later is not in it.
    """

    digest: Digest
    path: str
    files: list[SourceFile] = Field(default_factory=list)
    reading: Reading | None = Field(None, description="Of a single file; None in records that are older.")

    @property
    def readings(self) -> list[Reading]:
        """How each file is read, where that is recorded: the same bytes read otherwise are other rows."""
        found = [file.reading for file in self.files] or [self.reading]
        return [reading for reading in found if reading]


class ConverterRef(Record):
    """The converter of a llama.cpp checkout as it was when it was hashed; the digest alone names it."""

    digest: Digest
    path: str
    python: str = Field(description="Interpreter that runs it.")


class OwnTasks(Record):
    """A directory of lm-evaluation-harness tasks as it was when it was hashed; the digest alone names it."""

    digest: Digest
    path: str


class RowsRef(ArtifactRef):
    """Rows as `rows.jsonl`: canonical JSON, one `{"messages": [...]}` a line, or `{"text": ...}` for raw text.

    `passes.json`, where it is there: for each pass over them the numbers of the rows that only some passes have.
    """

    artifact: ClassVar[str] = "rows"
    rows: int = Field(ge=0)


class TokensRef(ArtifactRef):
    """Rows as one tokenizer writes them, in `tokens.safetensors`: flat token ids, label positions, lengths, rows."""

    artifact: ClassVar[str] = "tokens"
    cut: int = Field(description="Examples that were longer than the length.")
    left_out: int = Field(description="Examples without a label, most of them for the cut.")


class DatasetRef(Record):
    """A curated batch of rows: what is trained on, and what is held out from training."""

    name: str
    task: str
    train: RowsRef
    heldout: RowsRef
    read: int = Field(ge=0, description="Rows in the source.")
    dropped: dict[str, int] = Field(
        default_factory=dict, description="Rows that nothing is made of, by reason: malformed, empty or there twice."
    )
    not_trained: dict[str, int] = Field(default_factory=dict, description="Good rows that are not trained, by reason.")


class Curated(Record):
    """A source by itself: its distinct rows that teach something, in order of identity."""

    rows: RowsRef
    read: int = Field(ge=0, description="Rows in the source.")
    dropped: dict[str, int] = Field(default_factory=dict, description="The other rows, by reason.")


class Batch(Record):
    """A curated source as a run takes it."""

    name: str
    task: str
    source: Curated
    heldout: RowsRef | None = Field(None, description="The rows of its held-out file; None: some of its own are.")
    skip: int = 0
    rows: int | None = None


class Split(Record):
    """Which rows of a run are trained, and which score."""

    datasets: list[DatasetRef] = Field(description="What is trained, in the order of the runs.")
    heldout: dict[str, RowsRef] = Field(description="Rows that score, by task; those of the line's tasks first.")
    aside: dict[str, RowsRef] = Field(description="Rows held out of a task that do not score: over its cap.")
    not_scored: dict[str, int] = Field(
        default_factory=dict, description="Rows of files of held-out rows that the line has learned, by task."
    )


class BaseRef(Record):
    """The pretrained model. `digest` covers names and hashes of config, tokenizer, template and weights."""

    name: str
    revision: str | None = None
    digest: Digest
    day: str | None = Field(
        None, description="ISO date that its chat template writes wherever it asks for today; None if it never asks."
    )
    bare: bool = Field(
        False, description="Its tokenizer names a BOS token and its chats begin without it: raw text does so too."
    )


class ChatTemplate(Record):
    """The template that conversations are written by, and the special tokens that it may ask for, by name."""

    text: str
    special: dict[str, str]


class AdapterRef(ArtifactRef):
    """A LoRA adapter in PEFT layout: `adapter_config.json` and `adapter_model.safetensors`."""

    artifact: ClassVar[str] = "adapter"
    kind: Literal["tuned", "merged"]


class Start(Record):
    """Where a run starts from: the adapter tuned last, as it is or with orthonormal rows of A (SLAO)."""

    tuned: AdapterRef
    orthonormal: bool
    keep: bool = Field(
        False, description="Turn B with the rows, so that B·A stays as tuned.", json_schema_extra={"key": "if set"}
    )


class Drift(Record):
    """What a merge did to the merged adapter."""

    a: float = Field(description="Frobenius norm of A's change over that of A before.")
    b: float = Field(description="The same of B.")
    weight: float = Field(description="λ: how far B went towards the tuned one.")


class Searched(Record):
    """The λ that held-out rows like best."""

    weight: float
    tried: dict[str, float] = Field(description="λ -> mean over the tasks of the loss per label token, in nats.")


class Harnessed(Record):
    """What lm-evaluation-harness measured of one adapter, or of the base."""

    scores: dict[str, dict[str, float]] = Field(description="Task or group -> metric -> score.")


class TrainResult(Record):
    """What one LoRA run made, and what it took."""

    adapter: AdapterRef
    steps: int
    tokens: int = Field(description="Tokens seen, padding not counted.")
    train_loss: float = Field(description="Mean loss per label token over the last tenth of the steps.")
    seconds: float
    cut: int = Field(0, description="Examples that were longer than max_length.")
    left_out: int = Field(0, description="Examples without a token to learn from, most of them for the cut.")


class Scores(ArtifactRef):
    """One cell of the matrix: one adapter (or the bare base) on one held-out set. `scores.jsonl` has it per row."""

    artifact: ClassVar[str] = "scores"
    rows: int
    tokens: int = Field(description="Label tokens.")
    loss: float = Field(description="Mean negative log-likelihood per label token, in nats.")
    token_accuracy: float = Field(ge=0, le=1)
    exact_match: float = Field(ge=0, le=1)


class Generated(Record):
    """What a model wrote."""

    text: str = Field(description="Without the stop token.")
    tokens: int = Field(description="Written, the stop token included.")
    stopped: bool = Field(description="It ended by itself, not at the longest allowed length.")


class Answers(Record):
    """What a model wrote to several prompts, in their order."""

    answers: list[Generated]


class Generations(ArtifactRef):
    """What one adapter (or the bare base) answers to one held-out set: `generations.jsonl`, a row a line."""

    artifact: ClassVar[str] = "generations"
    rows: int
    stopped: int = Field(description="Answers that ended by themselves, not at the longest allowed length.")


class Ratings(ArtifactRef):
    """How good each of those answers is, from 0 to 1: `ratings.jsonl`, a row a line."""

    artifact: ClassVar[str] = "ratings"
    metric: str
    rows: int
    score: float = Field(ge=0, le=1, description="Mean over rows.")


class Cell(Record):
    """One cell of the matrix: one adapter (or the bare base) on one held-out set."""

    scores: Scores
    rating: Ratings | None = Field(None, description="Of what it writes, where the metric asks for it.")
    heldout: Digest | None = Field(None, description="Of the rows that were scored: only scores of the same compare.")

    def score(self, metric: str) -> float | None:
        """In this metric, more is better: of loss it is the negative. None if it was not rated in it."""
        match metric:
            case "loss":
                return -self.scores.loss
            case "token_accuracy" | "exact_match":
                return float(getattr(self.scores, metric))
        return self.rating.score if self.rating and self.rating.metric == metric else None

    @property
    def rows(self) -> "Scores | Ratings":
        """Where the score of each row stands."""
        return self.rating or self.scores


class GGUFRef(ArtifactRef):
    """One GGUF file, `model.gguf`."""

    artifact: ClassVar[str] = "gguf"
    quantization: str
    bytes: int


class ReferenceRef(ArtifactRef):
    """What GGUF files of a model are compared with: `reference.json` and `likely.safetensors`."""

    artifact: ClassVar[str] = "reference"
    positions: int = Field(description="Tokens that the model has read.")


class ImportanceRef(ArtifactRef):
    """What counts in each matrix of a model, on held-out text: `importance.safetensors`."""

    artifact: ClassVar[str] = "importance"
    rows: int = Field(description="Read for it.")


class PackageRef(ArtifactRef):
    """What was trained, in a form that other programs load: a directory, or `adapter.gguf`."""

    artifact: ClassVar[str] = "package"
    package: str
    bytes: int


class FileAnswer(Record):
    """What a GGUF file answers through llama.cpp and its own template, beside the fused model it came from."""

    prompt: str = Field(description="What the user said last.")
    answer: str
    reference: str = Field(description="What the fused model answers.")
    stopped: bool = Field(description="The file's answer ended by itself, not at the longest allowed length.")

    @property
    def same(self) -> bool:
        """Word for word, indentation included. What ends it, and a tokenizer's one space before it, do not count."""
        return self.answer.rstrip().removeprefix(" ") == self.reference.rstrip().removeprefix(" ")


class Fidelity(Record):
    """How far a GGUF file answers as the fused model it came from, over held-out rows."""

    positions: int = Field(description="Tokens compared.")
    ids_equal: bool = Field(description="Every text gave the same token ids.")
    top1: float = Field(ge=0, le=1, description="Share of positions with the same most likely token.")
    kl: float = Field(description="Mean KL divergence from the fused model, in nats per token.")
    answers: list[FileAnswer] = Field(
        default_factory=list, description="The most likely ones, to the canaries, else to the first held-out rows."
    )


class ErrorRecord(Record):
    """An error as it is reported: code, what and which, what to do."""

    code: str
    message: str
    hint: str
    retryable: bool


class StageRecord(Record):
    """One stage of a flow run: its cache key, and whether the cache had it."""

    stage: str
    key: Digest
    cached: bool
    seconds: float
    digest: str | None


class Located(Record):
    """An artifact and where it lies on this machine."""

    digest: Digest
    path: str


class DatasetSummary(Record):
    """A dataset as it stands in a result."""

    name: str
    task: str
    digest: Digest
    train_rows: int
    heldout_rows: int
    dropped: dict[str, int] = Field(description="Rows that nothing is made of, by reason.")
    not_trained: dict[str, int] = Field(
        default_factory=dict,
        description="Good rows that are not trained, by reason: held_out, watched, held_out_elsewhere (they score "
        "another dataset), set_aside (held out, over the cap), learned (by the line), outside_window (skip and rows).",
    )


class RunRecord(Record):
    """One LoRA run of a multi-run."""

    run_id: RunId
    dataset: DatasetSummary
    tuned: Located
    merged: Located
    steps: int
    tokens: int
    seconds: float
    train_loss: float
    cached: bool
    accepted: bool
    cut: int = Field(0, description="Examples that were longer than max_length.")
    left_out: int = Field(0, description="Examples without a token to learn from, most of them for the cut.")
    drift: Drift | None = Field(None, description="Of its merge into what was merged before; null for the first.")


class Evaluation(Record):
    """The forgetting matrix: `matrix[i][t]` is the token accuracy of task t after run i, null where t came later."""

    tasks: list[str] = Field(description="Columns: the trained tasks in order, then the watched ones.")
    watch: list[str] = Field(description="The columns that no run trained; not part of the averages.")
    metric: str = Field(description="What average, backward_transfer and forgetting are in.")
    matrix: list[list[float | None]]
    loss: list[list[float | None]]
    exact_match: list[list[float | None]]
    base: list[float] = Field(description="Token accuracy of the untouched base, by task.")
    base_exact_match: list[float]
    scores: list[list[float | None]] = Field(default_factory=list, description="The matrix in `metric`.")
    base_scores: list[float] = Field(default_factory=list, description="Of the untouched base, in `metric`.")
    average: float
    backward_transfer: float | None
    forgetting: list[float | None] = Field(
        description="By task; null where no earlier run was scored on the rows that the last one was."
    )


class HarnessRecord(Record):
    """A figure of lm-evaluation-harness as it stands in a result."""

    task: str
    metric: str
    base: float = Field(description="Of the untouched base.")
    score: float = Field(description="Of the merged adapter.")


class Choice(Record):
    """A field of the spec that was left open, what stands there, and why."""

    field: str
    value: Any
    reason: str


class BaseRecord(Record):
    """The base as it stands in a result."""

    name: str
    revision: str | None
    digest: Digest
    day: str | None = Field(None, description="What its chat template writes as the day, where it writes one.")


class GGUFRecord(Record):
    """A GGUF file as it stands in a result."""

    quantization: str
    digest: Digest
    path: str
    bytes: int
    fidelity: dict[str, Any]

    @property
    def answers(self) -> list[FileAnswer]:
        """What it was seen to answer."""
        return [FileAnswer.model_validate(answer) for answer in self.fidelity.get("answers", [])]

    @property
    def same_answers(self) -> str:
        """How many of them are the fused model's, like `2 of 2`; nothing if none was asked for."""
        return f"{sum(answer.same for answer in self.answers)} of {len(self.answers)}" if self.answers else ""


class PackageRecord(Located):
    """What another program loads, as it stands in a result."""

    package: str
    bytes: int


class RunResult(Record):
    """What every flow returns, as JSON."""

    format: Literal[1] = 1
    run_id: RunId
    mlflow_run_id: str | None = None
    flow: str | None = Field(None, description="None in records that are older than this field.")
    line: str
    version: int | None = None
    status: Status
    reason: str | None = Field(None, description="Why nothing was done, or what was said of it before the release.")
    spec: dict[str, Any]
    defaults: list[Choice] = Field(default_factory=list, description="What of the spec was chosen, not given.")
    base: BaseRecord | None = None
    runs: list[RunRecord] = Field(default_factory=list)
    split: Split | None = Field(None, description="Which rows were trained, and which score; None in older records.")
    evaluation: Evaluation | None = None
    harness: list[HarnessRecord] = Field(default_factory=list)
    gate: GateReport | None = None
    act: Act | None = Field(None, description="Of a person who made this version the champion; null: the gate did.")
    merged: Located | None = None
    gguf: list[GGUFRecord] = Field(default_factory=list)
    packages: list[PackageRecord] = Field(default_factory=list)
    written: list[str] = Field(default_factory=list, description="Files copied to the directory that was named.")
    ollama: dict[str, str] | None = None
    hub: dict[str, str] | None = None
    stages: list[StageRecord] = Field(default_factory=list)
    error: ErrorRecord | None = None
