"""EvaluationSpec and GateSpec: metrics, generation, judge, lm-evaluation-harness, canaries, gate thresholds."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from backprop_core.schema.field_types import compiles
from backprop_core.schema.gate_report import Question
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Spec
from backprop_core.schema.specs.training import DatasetSpec


class GenerationSpec(Spec):
    """How to generate answers."""

    max_new_tokens: int = Field(128, ge=1, le=32768, description="Maximum tokens per answer.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature; 0: greedy.")
    seed: int = Field(0, ge=0, lt=2**31, description="Random seed for sampling.")


class JudgeSpec(Spec):
    """A language model that grades answers. Set its API key, if any, in BACKPROPAGATE_JUDGE_API_KEY."""

    address: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="OpenAI-compatible URL, like https://host/v1; the rows to grade are sent there.",
    )
    model: str | None = Field(None, min_length=1, description="Model name at that URL.")
    timeout: float = Field(60, gt=0, description="Seconds to wait for a grade.", json_schema_extra=NO_KEY)


Metric = Literal["token_accuracy", "exact_match", "loss", "token_f1", "label_accuracy", "contains", "regex", "judge"]
TEACHER_FORCED = {"token_accuracy", "exact_match", "loss"}  # the other metrics rate generated answers


class HarnessSpec(Spec):
    """lm-evaluation-harness tasks. Their scores are recorded beside the base model's; the gate ignores them."""

    tasks: list[str] = Field(default_factory=list, description="Names of harness tasks and groups, like [arc_easy].")
    limit: int | None = Field(None, ge=1, description="Use only the first N examples of each task; default: all.")
    shots: int | None = Field(None, ge=0, description="Few-shot examples per question; default: the task's own.")


class EvaluationSpec(Spec):
    """What to measure on the held-out rows."""

    metric: Metric = Field(
        "token_accuracy",
        description="Metric of the gate and the printed average; loss is negated, so that higher is better.",
        json_schema_extra=NO_KEY,
    )
    pattern: Annotated[str | None, AfterValidator(compiles)] = Field(
        None,
        description="For metric regex: its match in the answer must equal its match in the reference.",
        json_schema_extra=KEY_IF_SET,
    )
    judge: JudgeSpec = Field(JudgeSpec(), json_schema_extra=KEY_IF_SET)
    heldout_max: int = Field(
        200, ge=1, description="Maximum held-out rows scored per task, first by hash; the rest is trained on."
    )
    watch: list[DatasetSpec] = Field(
        default_factory=list, description="Datasets only for scoring, never trained on: skills that must not be lost."
    )
    generation: GenerationSpec = Field(GenerationSpec(), json_schema_extra=KEY_IF_SET)
    harness: HarnessSpec = Field(HarnessSpec(), json_schema_extra=KEY_IF_SET)


class CanarySpec(Spec):
    """A prompt that a version must answer as expected to go live."""

    prompt: str = Field(min_length=1, description="The user message.")
    expect: str = Field(min_length=1, description="What the answer must contain, match or equal.")
    match: Literal["contains", "regex", "exact"] = Field(
        "contains", description="contains ignores case; exact ignores spaces at both ends."
    )

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.match == "regex":
            compiles(self.expect)
        return self


class MinRowsSpec(Spec):
    """How many held-out rows the gate needs. With fewer than the defaults, simulations show that chance decides."""

    task: int = Field(
        5,
        ge=2,
        description="Tasks with fewer held-out rows are ignored. The confidence sets a minimum too: 5 rows for 95 %, "
        "7 for 99 %.",
    )
    overall: int = Field(5, ge=2, description="Minimum held-out rows of all counted tasks together.")


class GateSpec(Spec):
    """When a candidate may go live: better, or not worse, on average, and significantly worse on no task."""

    question: Question = Field(
        "better",
        description="What the average must show. better: above champion and base. not_worse: at most margin below "
        "them, for lines at their ceiling and rows that must be learned; a first version must be better than the base.",
        json_schema_extra=KEY_IF_SET,
    )
    margin: float = Field(
        0.02,
        ge=0,
        le=1,
        description="For question not_worse: how much lower the average may be, in units of the metric.",
        json_schema_extra=KEY_IF_SET,
    )
    max_drop: float = Field(0.01, ge=0, le=1, description="How much a task's score may drop, in units of the metric.")
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="Confidence of the bootstrap: that the average rose or is not worse, or that a task dropped by "
        "more than max_drop.",
    )
    min_rows: MinRowsSpec = Field(MinRowsSpec(), json_schema_extra=KEY_IF_SET)
    canaries: list[CanarySpec] = Field(
        [],
        description="Prompts that a new version must answer as expected, except those that the champion fails too.",
        json_schema_extra=KEY_IF_SET,
    )
    canary_pass_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the canaries that must be answered as expected; default: all that the champion passes.",
        json_schema_extra=KEY_IF_SET,
    )
