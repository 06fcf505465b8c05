"""RunResult, which a run returns, prints and keeps, with the records in it."""

from typing import Any, Literal

from pydantic import Field

from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.records import Record
from backprop_core.schema.refs.artifact import Digest, RunId
from backprop_core.schema.refs.bench import BenchReport
from backprop_core.schema.refs.datasets import RowsRef, Split
from backprop_core.schema.refs.exports import FileAnswer
from backprop_core.schema.refs.models import Drift, KeptStep
from backprop_core.schema.refs.sweeps import SweepReport

Status = Literal["finished", "unchanged", "rejected", "failed", "interrupted", "running"]


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
        "outside_window (skip and rows), in_held_out_preference (an answer of a preference that scores).",
    )
    pairs: int = Field(0, description="Training rows that have a chosen and a rejected answer.")
    ratings: int = Field(0, description="Training rows whose answer was rated good or bad.")


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
    kept: KeptStep | None = Field(None, description="Best step; null without early stopping.")
    drift: Drift | None = Field(None, description="Change made by its merge; null for the first run.")
    taken: float | None = Field(None, description="Share of its change that back-off took; null without back-off.")


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
    general: list[RowsRef] = Field(
        default_factory=list, description="Answers of the untouched base that it trained on as well (replay_general)."
    )
    evaluation: Evaluation | None = None
    harness: list[HarnessRecord] = Field(default_factory=list)
    bench: BenchReport | None = Field(None, description="The settings that `bench` compared.")
    gate: GateReport | None = None
    act: Act | None = Field(None, description="The manual promotion of this version; null: the gate decided.")
    sweep: SweepReport | None = Field(None, description="What a sweep found; None for other runs.")
    merged: Located | None = None
    gguf: list[GGUFRecord] = Field(default_factory=list)
    packages: list[PackageRecord] = Field(default_factory=list)
    written: list[str] = Field(default_factory=list, description="Files copied to the output directory.")
    ollama: dict[str, str] | None = None
    hub: dict[str, str] | None = None
    stages: list[StageRecord] = Field(default_factory=list)
    error: ErrorRecord | None = None
