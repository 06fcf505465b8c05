"""What is made of it, who is asked, and when: runs and lines."""

from typing import Annotated, Literal

from pydantic import Field

from backprop_core.schema.field_types import LineName, Prose
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Spec
from backprop_core.schema.specs.measures import EvaluationSpec, GateSpec
from backprop_core.schema.specs.training import DatasetSpec, MergeSpec, ModelSpec, TrainSpec

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0", "q3_k_m", "q2_k"]


Package = Literal["merged", "lora", "gguf-lora"]


class ExportSpec(Spec):
    """Which files are made, and how they are served."""

    quantizations: list[Quantization] = Field(default_factory=list, description="GGUF files to write, if any.")
    packages: list[Package] = Field(
        [],
        description="Beside them: merged is the fused model as safetensors, lora the adapter with its tokenizer, "
        "gguf-lora the adapter as a GGUF file.",
        json_schema_extra=KEY_IF_SET,
    )
    imatrix: bool = Field(
        False,
        description="What counts in each matrix, on held-out rows, decides how llama.cpp rounds: for q2_k and q3_k_m.",
        json_schema_extra=KEY_IF_SET,
    )
    ollama: LineName | None = Field(
        None, description="Make the first of the files this model of Ollama's.", json_schema_extra=NO_KEY
    )
    num_ctx: int | None = Field(
        None,
        ge=16,
        description="Tokens of context that Ollama keeps; default: the model's, at most 8192.",
        json_schema_extra=NO_KEY,
    )
    system: Prose | None = Field(None, description="System prompt of the served model.", json_schema_extra=NO_KEY)
    license: Prose | None = Field(None, description="Licence of the served model, as text.", json_schema_extra=NO_KEY)


class PublishSpec(Spec):
    """Where a line's version goes when it goes live: everywhere that is named here, or nowhere."""

    ollama: LineName | None = Field(None, description="Model of Ollama's: the version is its tag vN, and latest.")
    repo: str | None = Field(None, min_length=3, max_length=96, description="Repository of the Hub, OWNER/NAME.")
    private: bool = Field(True, description="Whether a repository that is made is private.")
    gguf: bool = Field(False, description="Put the GGUF files into the repository, too.")
    keep: int | None = Field(None, ge=1, description="Versions whose files are kept after a release; default: all.")


BlockName = Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]


class ApprovalSpec(Spec):
    """Whether a person is asked before a version goes live."""

    ask: bool = Field(False, description="Ask, in the Prefect UI or at the terminal, before anything is released.")
    hours: float = Field(
        24, gt=0, le=8760, description="How long the Prefect UI waits for the answer; then the version is rejected."
    )


class RunSpec(Spec):
    """Everything that a run asks for: one dataset a LoRA run, merged after each."""

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
        description="Notification blocks of Prefect, like slack-webhook/team, that are told how a retrain went, and "
        "that it waits for approval.",
        json_schema_extra=NO_KEY,
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Time for a run: then it stops, in training at a step with a checkpoint, and `resume` goes on for "
        "as long again. The wait for approval does not count.",
        json_schema_extra=NO_KEY,
    )
    min_new_rows: int = Field(
        1,
        ge=1,
        description="A retrain waits until so many training rows are new to the line; in a line's file 200 by default.",
        json_schema_extra=KEY_IF_SET,
    )


class ScheduleSpec(Spec):
    """When a line's job runs by itself."""

    cron: str = Field(min_length=9, description="Minute, hour, day, month, weekday: `0 3 * * *` is every night at 3.")
    timezone: str = Field("UTC", min_length=1, description="Name of the time zone, like Europe/Berlin.")


class StalenessSpec(ScheduleSpec):
    """How often the champion is tried on rows that it has not learned, and when a retrain is asked for."""

    max_loss_ratio: float = Field(
        1.3, gt=1, description="Its loss on them over that on the held-out rows: above this it no longer fits."
    )


class LineSpec(RunSpec):
    """A line's job, `lines/NAME.yaml`: what its next run does, and when."""

    line: LineName = Field("default", description="Name under which the run is recorded; of a line's file: its name.")
    datasets: list[DatasetSpec] = Field(min_length=1, max_length=1, description="Where the line's new rows are found.")
    min_new_rows: int = Field(
        200, ge=1, description="A retrain waits until so many training rows are new to the line; 1 without a file."
    )
    schedule: ScheduleSpec | None = Field(None, description="When it runs by itself; only in a line's file.")
    poll_seconds: float | None = Field(
        None,
        ge=1,
        description="Seconds between looks of `serve` and `watch` for new data, which starts a run when it stays from "
        "one look to the next; only in a line's file.",
    )
    drift: StalenessSpec | None = Field(
        None, description="When the champion is tried on fresh rows by itself; only in a line's file."
    )

    def run(self) -> RunSpec:
        """What one run of the job asks for."""
        return RunSpec(**{name: getattr(self, name) for name in RunSpec.model_fields})
