"""Refs to artifacts in the store (AdapterRef, RowsRef, Scores, …), and RunResult with its records. Plain JSON."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Record
from backprop_core.schema.specs.curation import CurationSpec

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Status = Literal["finished", "unchanged", "rejected", "failed", "interrupted", "running"]


class ArtifactRef(Record):
    """A directory in the store, named by the digest of its payload alone: same bytes, same name."""

    artifact: ClassVar[str]
    format: ClassVar[int] = 1
    digest: Digest


def artifacts_in(value: Any) -> Iterator[ArtifactRef]:
    """Every artifact ref in a record, at any depth."""
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


class ConverterRef(Record):
    """The converter of a llama.cpp checkout as it was when it was hashed, identified by the digest alone."""

    digest: Digest
    path: str
    python: str = Field(description="Python interpreter that runs it.")


class OwnTasks(Record):
    """A directory of custom lm-evaluation-harness tasks as it was when hashed, identified by the digest alone."""

    digest: Digest
    path: str


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
    lineage: LineageRef | None = Field(
        None, description="What happened to each row of its source; None in older records.", json_schema_extra=NO_KEY
    )


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
    curation: CurationSpec = Field(
        CurationSpec(), description="How close a training row may be to one that scores.", json_schema_extra=KEY_IF_SET
    )


class Split(Record):
    """Which rows a run trains on, and which rows it is scored on."""

    datasets: list[DatasetRef] = Field(description="Datasets to train on, in the order of the runs.")
    heldout: dict[str, RowsRef] = Field(description="Rows used for scoring, by task; the line's earlier tasks first.")
    aside: dict[str, RowsRef] = Field(description="Held-out rows beyond the cap, by task: neither trained nor scored.")
    not_scored: dict[str, int] = Field(
        default_factory=dict, description="Rows of held-out files not scored because the line trained on them, by task."
    )


class BaseRef(Record):
    """The base model. `digest` covers names and hashes of config, tokenizer, chat template and weights."""

    name: str
    revision: str | None = None
    digest: Digest
    day: str | None = Field(
        None, description="ISO date that its chat template renders as today; None if it uses no date."
    )
    bare: bool = Field(
        False, description="The tokenizer has a BOS token, but chats start without it; so does raw text."
    )


class ChatTemplate(Record):
    """A chat template, and the special tokens it can use, by name."""

    text: str
    special: dict[str, str]


class AdapterRef(ArtifactRef):
    """A LoRA adapter in PEFT layout: `adapter_config.json` and `adapter_model.safetensors`."""

    artifact: ClassVar[str] = "adapter"
    kind: Literal["tuned", "merged"]


class Start(Record):
    """The adapter that a run starts from: the last tuned one, unchanged or with orthonormal rows of A (SLAO)."""

    tuned: AdapterRef
    orthonormal: bool
    keep: bool = Field(
        False, description="Rotate B accordingly, so that B·A stays as tuned.", json_schema_extra={"key": "if set"}
    )


class Drift(Record):
    """How much a merge changed the merged adapter."""

    a: float = Field(description="Frobenius norm of the change of A, relative to that of A before.")
    b: float = Field(description="The same for B.")
    weight: float = Field(description="λ: how far B moved towards the tuned adapter.")


class Searched(Record):
    """The λ with the lowest loss on held-out rows."""

    weight: float
    tried: dict[str, float] = Field(description="λ -> loss per label token in nats, averaged over the tasks.")


class Harnessed(Record):
    """lm-evaluation-harness scores of one adapter, or of the base."""

    scores: dict[str, dict[str, float]] = Field(description="Task or group -> metric -> score.")


class TrainResult(Record):
    """The adapter that one LoRA run produced, with steps, tokens, loss and time."""

    adapter: AdapterRef
    steps: int
    tokens: int = Field(description="Tokens seen, without padding.")
    train_loss: float = Field(description="Mean loss per label token over the last tenth of the steps.")
    seconds: float
    cut: int = Field(0, description="Rows shortened to max_length.")
    left_out: int = Field(0, description="Rows or answers left out, mostly because they are too long.")


class Scores(ArtifactRef):
    """Scores of one adapter (or the base) on one held-out set: one cell of the forgetting matrix.

    `scores.jsonl` has them per row.
    """

    artifact: ClassVar[str] = "scores"
    rows: int
    tokens: int = Field(description="Label tokens.")
    loss: float = Field(description="Mean negative log-likelihood per label token, in nats.")
    token_accuracy: float = Field(ge=0, le=1)
    exact_match: float = Field(ge=0, le=1)


class Perplexities(ArtifactRef):
    """Perplexities of rows under the base: `perplexity.jsonl`, one line for each row that is short enough."""

    artifact: ClassVar[str] = "perplexity"
    FILE: ClassVar[str] = "perplexity.jsonl"
    rows: int = Field(ge=0, description="Rows with a perplexity.")


class Generated(Record):
    """A generated answer."""

    text: str = Field(description="The answer without the stop token.")
    tokens: int = Field(description="Generated tokens, including the stop token.")
    stopped: bool = Field(description="Whether it ended with a stop token, not at the length limit.")


class Answers(Record):
    """Generated answers to several prompts, in the same order."""

    answers: list[Generated]


class Generations(ArtifactRef):
    """Answers of one adapter (or the base) to one held-out set: `generations.jsonl`, one row per line."""

    artifact: ClassVar[str] = "generations"
    rows: int
    stopped: int = Field(description="Answers that ended with a stop token, not at the length limit.")


class Ratings(ArtifactRef):
    """Ratings of generated answers, from 0 to 1: `ratings.jsonl`, one row per line."""

    artifact: ClassVar[str] = "ratings"
    metric: str
    rows: int
    score: float = Field(ge=0, le=1, description="Mean over rows.")


class Cell(Record):
    """One cell of the forgetting matrix: one adapter (or the base) on one held-out set."""

    scores: Scores
    rating: Ratings | None = Field(None, description="Ratings of its generated answers, if the metric needs them.")
    heldout: Digest | None = Field(
        None, description="Digest of the scored rows; only scores on the same rows are comparable."
    )

    def score(self, metric: str) -> float | None:
        """The score in this metric, higher is better (loss is negated). None if it was not measured."""
        match metric:
            case "loss":
                return -self.scores.loss
            case "token_accuracy" | "exact_match":
                return float(getattr(self.scores, metric))
        return self.rating.score if self.rating and self.rating.metric == metric else None

    @property
    def rows(self) -> "Scores | Ratings":
        """The artifact with the score of each row."""
        return self.rating or self.scores


class GGUFRef(ArtifactRef):
    """One GGUF file, `model.gguf`."""

    artifact: ClassVar[str] = "gguf"
    quantization: str
    bytes: int


class ReferenceRef(ArtifactRef):
    """The fused model's outputs that GGUF files are compared with: `reference.json` and `likely.safetensors`."""

    artifact: ClassVar[str] = "reference"
    positions: int = Field(description="Tokens read by the model.")


class ImportanceRef(ArtifactRef):
    """Importance matrix (imatrix) of a model, computed on held-out text: `importance.safetensors`."""

    artifact: ClassVar[str] = "importance"
    rows: int = Field(description="Rows it was computed on.")


class PackageRef(ArtifactRef):
    """The trained model or adapter in a format for other programs: a directory, or `adapter.gguf`."""

    artifact: ClassVar[str] = "package"
    package: str
    bytes: int


class FileAnswer(Record):
    """A GGUF file's answer through llama.cpp and its own chat template, beside the fused model's answer."""

    prompt: str = Field(description="The last user message.")
    answer: str
    reference: str = Field(description="The fused model's answer.")
    stopped: bool = Field(description="Whether the file's answer ended with a stop token, not at the length limit.")

    @property
    def same(self) -> bool:
        """Whether both are equal, ignoring trailing whitespace and the one leading space some tokenizers add."""
        return self.answer.rstrip().removeprefix(" ") == self.reference.rstrip().removeprefix(" ")


class Fidelity(Record):
    """How closely a GGUF file matches the fused model it was made from, on held-out rows."""

    positions: int = Field(description="Tokens compared.")
    ids_equal: bool = Field(description="Whether every text gave the same token ids.")
    top1: float = Field(ge=0, le=1, description="Share of positions with the same most likely token.")
    kl: float = Field(description="Mean KL divergence from the fused model, in nats per token.")
    answers: list[FileAnswer] = Field(
        default_factory=list, description="Greedy answers to the canaries, or else to the first held-out rows."
    )


class ErrorRecord(Record):
    """An error as reported to the user: code, message, hint."""

    code: str
    message: str
    hint: str
    retryable: bool


class StageRecord(Record):
    """One stage of a flow run: its cache key, and whether its result came from the cache."""

    stage: str
    key: Digest
    cached: bool
    seconds: float
    digest: str | None
    changed: list[str] = Field(
        default_factory=list,
        description="Why it was not in the cache: the parts of its key that differ from the most similar earlier one.",
    )


class Located(Record):
    """An artifact and its path on this machine."""

    digest: Digest
    path: str


class DatasetSummary(Record):
    """A dataset in a RunResult."""

    name: str
    task: str
    digest: Digest
    train_rows: int
    heldout_rows: int
    dropped: dict[str, int] = Field(description="Dropped rows by reason.")
    not_trained: dict[str, int] = Field(
        default_factory=dict,
        description="Usable rows not trained on, by reason: held_out, watched, held_out_elsewhere (they score another "
        "dataset), set_aside (held out, beyond the cap), group_held_out (another row of its group "
        "is held out), held_out_redacted (scores with or without redaction), near_held_out and "
        "shares_words_with_held_out (too close to a row that scores), learned (by the line), "
        "outside_window (skip and rows).",
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
    cut: int = Field(0, description="Rows shortened to max_length.")
    left_out: int = Field(0, description="Rows or answers left out, mostly because they are too long.")
    drift: Drift | None = Field(None, description="Change made by its merge; null for the first run.")


class Evaluation(Record):
    """The forgetting matrix: `matrix[i][t]` is the token accuracy of task t after run i, null if t came later."""

    tasks: list[str] = Field(description="Columns: the trained tasks in order, then the watched ones.")
    watch: list[str] = Field(description="The watched columns; not part of the averages.")
    metric: str = Field(description="Metric of average, backward_transfer and forgetting.")
    matrix: list[list[float | None]]
    loss: list[list[float | None]]
    exact_match: list[list[float | None]]
    base: list[float] = Field(description="Token accuracy of the base model, by task.")
    base_exact_match: list[float]
    scores: list[list[float | None]] = Field(default_factory=list, description="The matrix in `metric`.")
    base_scores: list[float] = Field(default_factory=list, description="The base model's scores in `metric`.")
    average: float
    backward_transfer: float | None
    forgetting: list[float | None] = Field(
        description="By task; null if no earlier run was scored on the same rows as the last one."
    )


class HarnessRecord(Record):
    """One lm-evaluation-harness score in a RunResult."""

    task: str
    metric: str
    base: float = Field(description="Score of the base model.")
    score: float = Field(description="Score of the merged adapter.")


class Choice(Record):
    """A spec field that the user left unset, the value chosen for it, and why."""

    field: str
    value: Any
    reason: str


class BaseRecord(Record):
    """The base model in a RunResult."""

    name: str
    revision: str | None
    digest: Digest
    day: str | None = Field(None, description="The date its chat template renders as today, if it uses one.")


class GGUFRecord(Record):
    """A GGUF file in a RunResult."""

    quantization: str
    digest: Digest
    path: str
    bytes: int
    fidelity: dict[str, Any]

    @property
    def answers(self) -> list[FileAnswer]:
        """Its answers from the fidelity check."""
        return [FileAnswer.model_validate(answer) for answer in self.fidelity.get("answers", [])]

    @property
    def same_answers(self) -> str:
        """How many answers equal the fused model's, like `2 of 2`; empty if there are none."""
        return f"{sum(answer.same for answer in self.answers)} of {len(self.answers)}" if self.answers else ""


class PackageRecord(Located):
    """An exported package in a RunResult."""

    package: str
    bytes: int


class RunResult(Record):
    """The result that every flow returns, as JSON."""

    format: Literal[1] = 1
    run_id: RunId
    mlflow_run_id: str | None = None
    flow: str | None = Field(None, description="None in records older than this field.")
    line: str
    version: int | None = None
    status: Status
    reason: str | None = Field(None, description="Why nothing was done, or the approval decision.")
    spec: dict[str, Any]
    defaults: list[Choice] = Field(default_factory=list, description="Spec fields chosen automatically.")
    base: BaseRecord | None = None
    runs: list[RunRecord] = Field(default_factory=list)
    split: Split | None = Field(None, description="Which rows were trained and which scored; None in older records.")
    evaluation: Evaluation | None = None
    harness: list[HarnessRecord] = Field(default_factory=list)
    gate: GateReport | None = None
    act: Act | None = Field(None, description="The manual promotion of this version; null: the gate decided.")
    merged: Located | None = None
    gguf: list[GGUFRecord] = Field(default_factory=list)
    packages: list[PackageRecord] = Field(default_factory=list)
    written: list[str] = Field(default_factory=list, description="Files copied to the output directory.")
    ollama: dict[str, str] | None = None
    hub: dict[str, str] | None = None
    stages: list[StageRecord] = Field(default_factory=list)
    error: ErrorRecord | None = None
