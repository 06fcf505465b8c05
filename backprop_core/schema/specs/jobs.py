"""RunSpec and LineSpec: a run, its export, publishing, approval, notifications, and a line's schedule."""

from typing import Annotated, Literal

from pydantic import Field

from backprop_core.schema.field_types import LineName, Prose
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Spec
from backprop_core.schema.specs.measures import EvaluationSpec, GateSpec
from backprop_core.schema.specs.training import DatasetSpec, MergeSpec, ModelSpec, TrainSpec

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0", "q3_k_m", "q2_k"]


Package = Literal["merged", "lora", "gguf-lora"]


class ExportSpec(Spec):
    """Which files to export, and how Ollama serves them."""

    quantizations: list[Quantization] = Field(default_factory=list, description="GGUF files to write.")
    packages: list[Package] = Field(
        [],
        description="Other formats to write. merged: the fused model as safetensors; lora: the adapter with its "
        "tokenizer; gguf-lora: the adapter as a GGUF file.",
        json_schema_extra=KEY_IF_SET,
    )
    imatrix: bool = Field(
        False,
        description="Quantize with an importance matrix from held-out rows; useful for q2_k and q3_k_m.",
        json_schema_extra=KEY_IF_SET,
    )
    ollama: LineName | None = Field(
        None, description="Register the first GGUF file in Ollama under this name.", json_schema_extra=NO_KEY
    )
    num_ctx: int | None = Field(
        None,
        ge=16,
        description="Ollama's context length in tokens; default: the model's, at most 8192.",
        json_schema_extra=NO_KEY,
    )
    system: Prose | None = Field(None, description="System prompt of the served model.", json_schema_extra=NO_KEY)
    license: Prose | None = Field(None, description="License text of the served model.", json_schema_extra=NO_KEY)


class PublishSpec(Spec):
    """Where to publish a version when it goes live: to all named targets, or to none if one fails."""

    ollama: LineName | None = Field(None, description="Ollama model; the version gets the tags vN and latest.")
    repo: str | None = Field(None, min_length=3, max_length=96, description="Hub repository, OWNER/NAME.")
    private: bool = Field(True, description="Whether a newly created repository is private.")
    gguf: bool = Field(False, description="Upload the GGUF files to the repository too.")
    keep: int | None = Field(
        None, ge=1, description="How many versions keep their files after a release; default: all."
    )


BlockName = Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]


class ApprovalSpec(Spec):
    """Whether a version needs a person's approval before it goes live."""

    ask: bool = Field(False, description="Ask for approval before a release, in the Prefect UI or at the terminal.")
    hours: float = Field(
        24, gt=0, le=8760, description="Hours to wait for approval in the Prefect UI; then the version is rejected."
    )


class RunSpec(Spec):
    """Configuration of a run: one LoRA training per dataset, merged after each."""

    line: LineName = Field("default", description="Name under which the run is recorded.")
    model: ModelSpec = ModelSpec()
    datasets: list[DatasetSpec] = Field(min_length=1, description="One LoRA run per dataset, in this order.")
    training: TrainSpec = TrainSpec()
    merge: MergeSpec = MergeSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    export: ExportSpec = ExportSpec()
    publish: PublishSpec = Field(PublishSpec(), json_schema_extra=NO_KEY)
    approval: ApprovalSpec = Field(ApprovalSpec(), json_schema_extra=NO_KEY)
    notify: list[BlockName] = Field(
        [],
        description="Prefect notification blocks, like slack-webhook/team. They get the result of each retrain and "
        "its approval requests.",
        json_schema_extra=NO_KEY,
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Time limit of a run in seconds. Training saves a checkpoint before it stops; `resume` continues "
        "with a new limit. Waiting for approval does not count.",
        json_schema_extra=NO_KEY,
    )
    min_new_rows: int = Field(
        1,
        ge=1,
        description="Training rows new to the line that a retrain needs to start; default in a line file: 200.",
        json_schema_extra=KEY_IF_SET,
    )

    @property
    def sets_rows_apart(self) -> bool:
        """Whether a quarter of the held-out rows only chooses (λ, back-off, the best step), and never scores."""
        return self.merge.chooses or self.training.early_stopping is not None


class ScheduleSpec(Spec):
    """When a line's job runs automatically."""

    cron: str = Field(min_length=9, description="Minute, hour, day, month, weekday: `0 3 * * *` is every night at 3.")
    timezone: str = Field("UTC", min_length=1, description="Name of the time zone, like Europe/Berlin.")


class StalenessSpec(ScheduleSpec):
    """When to check the champion on new rows for staleness, and at which loss to recommend a retrain."""

    max_loss_ratio: float = Field(
        1.3, gt=1, description="Stale above this ratio: loss on new rows divided by loss on held-out rows."
    )


class LineSpec(RunSpec):
    """A line's job, `lines/NAME.yaml`: configuration of its next run, and its schedule."""

    line: LineName = Field("default", description="Name to record the run under; in a line file: the line's name.")
    datasets: list[DatasetSpec] = Field(min_length=1, max_length=1, description="Where to find the line's new rows.")
    min_new_rows: int = Field(
        200, ge=1, description="Training rows new to the line that a retrain needs to start; 1 without a line file."
    )
    schedule: ScheduleSpec | None = Field(None, description="When to run automatically; only in a line file.")
    poll_seconds: float | None = Field(
        None,
        ge=1,
        description="Seconds between checks of `serve` and `watch` for new data. New data starts a run once two checks "
        "in a row see it unchanged; only in a line file.",
    )
    drift: StalenessSpec | None = Field(
        None, description="When to check the champion on new rows automatically; only in a line file."
    )
    queue: str | None = Field(
        None,
        min_length=1,
        description="Queue of the work pool whose machines run the line, like those with enough memory for its model; "
        "default: BACKPROPAGATE_QUEUE, or BACKPROPAGATE_CPU_QUEUE with training.device=cpu; only in a line file.",
    )

    def run(self) -> RunSpec:
        """The configuration of one run of the job."""
        return RunSpec(**{name: getattr(self, name) for name in RunSpec.model_fields})
