"""What is measured, and what lets a version go live."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from backprop_core.schema.field_types import compiles
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Spec
from backprop_core.schema.specs.training import DatasetSpec


class GenerationSpec(Spec):
    """How answers are written."""

    max_new_tokens: int = Field(128, ge=1, le=32768, description="Tokens of an answer at most.")
    temperature: float = Field(0.0, ge=0, le=2, description="0: the most likely token; above: drawn, more evenly.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds what is drawn.")


class JudgeSpec(Spec):
    """A language model that grades answers; its key, if it wants one, is BACKPROPAGATE_JUDGE_API_KEY."""

    address: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="OpenAI-compatible, like https://host/v1; what is graded is sent there.",
    )
    model: str | None = Field(None, min_length=1, description="Its name at that address.")
    timeout: float = Field(60, gt=0, description="Seconds to wait for a grade.", json_schema_extra=NO_KEY)


Metric = Literal["token_accuracy", "exact_match", "loss", "token_f1", "label_accuracy", "contains", "regex", "judge"]
TEACHER_FORCED = {"token_accuracy", "exact_match", "loss"}  # the other metrics are of answers that the model writes


class HarnessSpec(Spec):
    """Tasks of lm-evaluation-harness; they are recorded beside the base's, and decide nothing."""

    tasks: list[str] = Field(default_factory=list, description="Tasks and groups by its names, like [arc_easy].")
    limit: int | None = Field(None, ge=1, description="Examples of each task, the first ones; default: all.")
    shots: int | None = Field(None, ge=0, description="Examples shown before each question; default: the task's own.")


class EvaluationSpec(Spec):
    """What is measured on the held-out rows."""

    metric: Metric = Field(
        "token_accuracy",
        description="What the gate and the printed average go by; of loss the negative, so that more is better.",
        json_schema_extra=NO_KEY,
    )
    pattern: Annotated[str | None, AfterValidator(compiles)] = Field(
        None,
        description="For regex: what it finds in an answer has to be what it finds in the reference.",
        json_schema_extra=KEY_IF_SET,
    )
    judge: JudgeSpec = Field(JudgeSpec(), json_schema_extra=KEY_IF_SET)
    heldout_max: int = Field(
        200, ge=1, description="Held-out rows per task that score, first by hash; rows beyond are trained."
    )
    watch: list[DatasetSpec] = Field(
        default_factory=list, description="Held-out sets that no run trains: skills that must not be lost."
    )
    generation: GenerationSpec = Field(GenerationSpec(), json_schema_extra=KEY_IF_SET)
    harness: HarnessSpec = Field(HarnessSpec(), json_schema_extra=KEY_IF_SET)


class CanarySpec(Spec):
    """A prompt that a version which goes live has to answer as expected."""

    prompt: str = Field(min_length=1, description="What the user says.")
    expect: str = Field(min_length=1, description="What the answer has to contain, match or be.")
    match: Literal["contains", "regex", "exact"] = Field(
        "contains", description="contains: case aside; exact: but for spaces at the ends."
    )

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.match == "regex":
            compiles(self.expect)
        return self


class MinRowsSpec(Spec):
    """How many held-out rows the gate needs to tell anything; by a simulation, chance decides below the defaults."""

    task: int = Field(
        5,
        ge=2,
        description="A task with fewer held-out rows counts neither for nor against the candidate. The confidence asks "
        "for a minimum of its own: 5 rows for 95 %, 7 for 99 %.",
    )
    overall: int = Field(5, ge=2, description="The trained tasks that count must have so many together.")


class GateSpec(Spec):
    """When a candidate may go live: better on average than champion and base, and clearly worse on no task."""

    max_drop: float = Field(0.01, ge=0, le=1, description="How much of its score a task may lose, in the metric.")
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="How sure the bootstrap must be that the average rose, and that a task lost more than that.",
    )
    min_rows: MinRowsSpec = Field(MinRowsSpec(), json_schema_extra=KEY_IF_SET)
    canaries: list[CanarySpec] = Field(
        [],
        description="Prompts that it has to answer as expected, but for those that the champion fails too.",
        json_schema_extra=KEY_IF_SET,
    )
