"""ModelSpec, DatasetSpec, TrainSpec, LoraSpec and MergeSpec: base model, data, hyperparameters, merge strategy."""

import os.path
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from backprop_core.schema.field_types import HUB_ID, NAME, ROWS_FILE, Encoding, PathOrAddress
from backprop_core.schema.general_prompts import PROMPTS
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Record, Spec
from backprop_core.schema.specs.curation import CurationSpec


class ModelSpec(Spec):
    """The base model."""

    name: str = Field("Qwen/Qwen2.5-7B-Instruct", min_length=1, description="Hub id or local directory.")
    revision: str | None = Field(None, description="Hub branch, tag or commit; the commit is recorded.")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="During training: nf4 sets training.precision=nf4.", json_schema_extra=NO_KEY
    )


RowFormat = Literal[
    "auto",
    "mixed",
    "log",
    "preference",
    "openai-preference",
    "sharegpt",
    "messages",
    "alpaca",
    "prompt-completion",
    "question-answer",
    "text",
]


class TimeSplit(Spec):
    """Which rows are held out by time."""

    field: str = Field(min_length=1, description="Field of the file with the row's time: ISO 8601, or Unix time.")
    last: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the new rows, the latest ones, that is held out; rows of the same time stay together.",
        json_schema_extra=NO_KEY,
    )


class DatasetSpec(Spec):
    """A dataset: rows to train on or to score."""

    path: PathOrAddress = Field(
        min_length=1,
        description="A file, a directory of files, an fsspec or SQL URL, or OWNER/NAME of a Hub dataset.",
        json_schema_extra=NO_KEY,
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a Hub dataset; the commit is recorded.",
        json_schema_extra=NO_KEY,
    )
    config: str | None = Field(
        None, description="Config of a Hub dataset; default: its card's default.", json_schema_extra=NO_KEY
    )
    split: str | None = Field(None, description="Split of a Hub dataset; default: train.", json_schema_extra=NO_KEY)
    first: int | None = Field(
        None,
        ge=1,
        description="Read only the first N rows of a Hub dataset; the rest is not downloaded.",
        json_schema_extra=NO_KEY,
    )
    task: str | None = Field(None, pattern=NAME, description="Task that its score belongs to; default: file stem.")
    format: RowFormat = Field("auto", description="Row format; auto: detected; mixed: each row in its own.")
    tools: Literal["template", "as_text"] = Field(
        "template",
        description="Tools, calls and reasoning that the chat template has no place for: the row is dropped, or they "
        "are written as text.",
        json_schema_extra=KEY_IF_SET,
    )
    columns: dict[str, str] = Field(default_factory=dict, description="Field of the format -> column of the file.")
    encoding: Encoding | None = Field(
        None,
        description="Encoding of text files without a byte order mark, such as cp1252; default: UTF-8.",
        json_schema_extra=KEY_IF_SET,
    )
    heldout: PathOrAddress | None = Field(
        None, description="A file of held-out rows; default: a tenth of the rows, by hash.", json_schema_extra=NO_KEY
    )
    rows: int | None = Field(None, ge=1, description="Train on the first N rows by hash; the held-out set stays whole.")
    skip: int = Field(0, ge=0, description="Skip the first N training rows by hash (windows of one dataset).")
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="Maximum share of malformed rows.")
    group_by: str | None = Field(
        None,
        min_length=1,
        description="Field of the file, with one value a row: rows with the same value stay on one side, trained or "
        "held out.",
        json_schema_extra=KEY_IF_SET,
    )
    time_split: TimeSplit | None = Field(
        None,
        description="Hold out the latest rows, for data that drifts; default: a tenth by hash.",
        json_schema_extra=KEY_IF_SET,
    )
    curation: CurationSpec = Field(CurationSpec(), json_schema_extra=KEY_IF_SET)

    @field_validator("time_split")
    @classmethod
    def _held_out_in_one_way(cls, value: TimeSplit | None, known: ValidationInfo) -> TimeSplit | None:
        if value and known.data.get("heldout"):
            raise ValueError("time_split holds out rows of the dataset, and heldout names a file: set one of them")
        return value

    def on_hub(self, below: Path = Path()) -> bool:
        """Whether the path is a Hub dataset: OWNER/NAME, without a row file's suffix, and no local path."""
        looks_so = HUB_ID.fullmatch(self.path) and not ROWS_FILE.search(self.path)
        return bool(looks_so) and not os.path.exists(below / self.path)


MOST_RANK = 1024
STARTS = {"pissa", "loftq"}  # initializations; the result is an ordinary adapter of twice the rank
Backend = Literal["transformers", "unsloth"]


class LoraSpec(Spec):
    """The LoRA adapter's shape. Constant along a line."""

    rank: int = Field(16, ge=1, le=MOST_RANK, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="Scale: the update is alpha/rank · B·A.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers to adapt."
    )
    variant: Literal["lora", "rslora", "dora", "pissa", "loftq"] = Field(
        "lora",
        description="rslora: scale alpha/√rank; dora: learned magnitudes beside B·A; pissa: start from the base's "
        "principal components; loftq (nf4): start from its quantization error.",
        json_schema_extra=KEY_IF_SET,
    )

    @property
    def committed(self) -> "LoraSpec":
        """The shape of the resulting adapter."""
        if self.variant not in STARTS:
            return self
        return self.model_copy(update={"rank": 2 * self.rank, "alpha": 2 * self.alpha, "variant": "lora"})

    @model_validator(mode="after")
    def _twice_the_rank(self) -> Self:
        if self.committed.rank > MOST_RANK:
            raise ValueError(f"{self.variant} makes an adapter of twice the rank; the maximum is {MOST_RANK}")
        return self


TooLong = Literal["drop", "cut_left", "windows"]


class Limit(Record):
    """The maximum length of an example in tokens, and what happens to a row whose answer does not fit."""

    tokens: int
    too_long: TooLong | None = None


PreferenceLoss = Literal["dpo", "orpo", "kto"]


class PreferenceSpec(Spec):
    """How preferences are trained: rows with chosen and rejected answers, and rated answers (thumbs)."""

    loss: PreferenceLoss | None = Field(
        None,
        description="Loss of rows with chosen and rejected answers; kto rates both. Rated answers always use kto. "
        "Default: preferences are not trained.",
    )
    beta: float = Field(
        0.1, gt=0, description="dpo, kto: how closely to stay at the reference; orpo: weight of the odds ratio."
    )
    weight: float = Field(1, gt=0, description="Weight of a preference in the loss; that of any other row is 1.")
    good_weight: float = Field(1, gt=0, description="kto: weight of good answers.")
    bad_weight: float = Field(1, gt=0, description="kto: weight of bad answers.")


Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


class GuardSpec(Spec):
    """Readings of the GPU at which training pauses or a warning is logged."""

    pause_at: float = Field(83, ge=30, le=120, description="Temperature at which training pauses, in °C.")
    continue_at: float = Field(75, ge=20, le=120, description="Temperature at which it continues, in °C.")
    patience: float = Field(
        300, ge=5, le=86_400, description="Longest pause in seconds; then a checkpoint is saved and the run stops."
    )
    memory: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the GPU's memory, used by all programs, above which a warning is logged.",
    )
    power: float | None = Field(None, gt=0, description="Power draw in watts above which a warning is logged.")

    @model_validator(mode="after")
    def _continues_when_cooler(self) -> Self:
        if self.continue_at >= self.pause_at:
            raise ValueError(f"continue_at ({self.continue_at:g}) is not below pause_at ({self.pause_at:g})")
        return self


class EarlyStopping(Spec):
    """Evaluate on held-out rows during training, keep the adapter of the best step, stop when it no longer improves."""

    eval_steps: float = Field(
        0.1,
        gt=0,
        le=100_000,
        description="Optimizer steps between evaluations; below 1: a share of the run's steps.",
    )
    patience: int = Field(
        3, ge=1, le=1000, description="Stop after this many evaluations in a row without a lower loss."
    )


MOST_REPLAY = 0.1  # of an earlier dataset's rows in each epoch


class TrainSpec(Spec):
    """One LoRA training run."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps; default: from epochs.")
    epochs: float = Field(3, gt=0, le=1000, description="Passes over the rows, if steps is not set.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak of the cosine schedule.")
    later_learning_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The same for a run that continues an earlier one. Default: learning_rate, and half of it in a "
        "multi-run that leaves learning_rate open.",
        json_schema_extra=KEY_IF_SET,
    )
    batch_size: int = Field(16, ge=1, le=65536, description="Examples per optimizer step.")
    max_length: int = Field(2048, ge=16, description="Tokens per example after templating.")
    too_long: TooLong | None = Field(
        None,
        description="What happens to a row whose answer does not fit: drop leaves it out; cut_left leaves out the "
        "earliest turns; windows makes several examples. Default: drop; runs before this field cut on the right.",
        json_schema_extra=KEY_IF_SET,
    )
    token_budget: int = Field(4096, ge=16, description="Padded tokens per micro-batch.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps for warmup, at most 20 steps.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay of A and B, not of DoRA's magnitudes.")
    max_grad_norm: float = Field(1.0, gt=0, description="Clip the gradient norm to this.")
    precision: Literal["auto", "fp32", "bf16", "nf4"] = Field(
        "auto", description="Base weights in training; auto: bf16 or nf4 on a GPU, fp32 on a CPU. nf4 is QLoRA."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Random seed of the adapter's initialization and the row order.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one.")
    checkpoint_seconds: float = Field(
        300, ge=0, description="Seconds between checkpoints; 0: after every step.", json_schema_extra=NO_KEY
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Steps between checkpoints, in addition to the time.", json_schema_extra=NO_KEY
    )
    checkpoints_kept: int = Field(
        2, ge=1, description="Checkpoints to keep until the run is done.", json_schema_extra=NO_KEY
    )
    inexact_resume: bool = Field(
        False,
        description="Resume from a checkpoint of another machine or other versions: same row order, not the same bits.",
        json_schema_extra=NO_KEY,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Recompute activations instead of keeping them; auto: once memory runs out.",
        json_schema_extra=NO_KEY,
    )
    oom_recovery: bool = Field(
        True,
        description="When memory runs out, retry the step with smaller micro-batches or gradient checkpointing.",
        json_schema_extra=NO_KEY,
    )
    replay: float = Field(
        0,
        ge=0,
        le=MOST_REPLAY,
        description="Share of each earlier dataset's rows that every later epoch trains on again; each epoch draws "
        "other rows.",
        json_schema_extra=KEY_IF_SET,
    )
    replay_rows: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Rows of each earlier task that every later epoch trains on again, at least; each epoch draws "
        "other rows. Default: chosen for a new line, which keeps it.",
        json_schema_extra=KEY_IF_SET,
    )
    replay_general: int = Field(
        0,
        ge=0,
        le=len(PROMPTS),
        description="Answers of the untouched base to general prompts that every epoch trains on, to keep what no "
        "dataset has; each epoch draws others.",
        json_schema_extra=KEY_IF_SET,
    )
    preference: PreferenceSpec = Field(PreferenceSpec(), json_schema_extra=KEY_IF_SET)
    early_stopping: EarlyStopping | None = Field(
        None,
        description="Keep the adapter with the lowest loss on a quarter of the task's held-out rows, which then do not "
        "score, and stop early; default: the last step's adapter.",
        json_schema_extra=KEY_IF_SET,
    )
    processes: int = Field(1, ge=1, le=64, description="Training processes, one per GPU.", json_schema_extra=KEY_IF_SET)
    backend: Backend = Field(
        "transformers",
        description="Library that runs the training; unsloth needs BACKPROPAGATE_UNSLOTH_PYTHON.",
        json_schema_extra=KEY_IF_SET,
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw_8bit: moments in 8 bits, by bitsandbytes (extra qlora); paged_adamw_8bit: on a GPU, also in "
        "memory that moves to the CPU when the GPU's is full.",
        json_schema_extra=KEY_IF_SET,
    )
    guard: GuardSpec = Field(GuardSpec(), json_schema_extra=NO_KEY)
    lora: LoraSpec = LoraSpec()
    lora_plus: float | None = Field(
        None,
        ge=1,
        le=1000,
        description="LoRA+: ratio of B's learning rate to A's; default: 1.",
        json_schema_extra=KEY_IF_SET,
    )

    @property
    def limit(self) -> int | Limit:
        """The length limit of examples; a number in specs that are older than `too_long`, for their cache keys."""
        return self.max_length if self.too_long is None else Limit(tokens=self.max_length, too_long=self.too_long)

    def of_run(self, *, later: bool) -> "TrainSpec":
        """The spec of one run; a `later` one continues an earlier one."""
        rate = self.later_learning_rate if later and self.later_learning_rate else self.learning_rate
        return self.model_copy(update={"learning_rate": rate, "later_learning_rate": None})


Strategy = Literal["slao", "slao-kept", "slao-plain", "average", "sequential", "delta", "svd", "ties", "dare"]
WITHOUT_WEIGHT = {"sequential", "svd", "ties", "dare"}  # strategies in which λ does not weigh the last run


class MergeSpec(Spec):
    """How a run's adapter is merged into the merged one. Constant along a line."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    strategy: Strategy = Field("slao", description="Merge strategy; docs/continual.md says which to choose.")
    merge_a: bool = Field(
        False,
        description="Average A like B, instead of replacing A. Default: true in a new line that sets "
        "neither strategy nor lambda.",
        json_schema_extra=KEY_IF_SET,
    )
    weight: Literal["1/sqrt(i)", "1/i", "search"] | Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        alias="lambda",
        description="Weight of the i-th run in the merged adapter; default: the strategy's own; search: the one with "
        "the lowest loss on a quarter of the held-out rows, which the gate does not use.",
        json_schema_extra=KEY_IF_SET,
    )

    back_off: bool | None = Field(
        None,
        description="Before the gate, take as much of a run's change to the champion as scores best: all, 0.75, 0.5 or "
        "0.25, tried on a quarter of the held-out rows, which the gate does not use; default: as in the run behind "
        "the champion.",
        json_schema_extra=NO_KEY,
    )

    @model_validator(mode="after")
    def _something_to_search(self) -> Self:
        if self.searches and self.strategy in WITHOUT_WEIGHT:
            raise ValueError(f"strategy {self.strategy} has no lambda to search for")
        return self

    @property
    def searches(self) -> bool:
        """Whether each merge searches for its λ."""
        return self.weight == "search"

    @property
    def chooses(self) -> bool:
        """Whether a part of the held-out rows chooses, λ or how much of a change is taken, and never scores."""
        return self.searches or bool(self.back_off)

    @property
    def orthonormal_start(self) -> bool:
        """Whether the next run starts from orthonormal rows of A."""
        return self.strategy in ("slao", "slao-kept")

    @property
    def keeps_function(self) -> bool:
        """Whether that start keeps the function of the tuned adapter (rotates B too)."""
        return self.strategy == "slao-kept"

    @property
    def takes_all(self) -> bool:
        """Whether each merge uses the tuned adapters of all runs."""
        return self.strategy in ("svd", "ties", "dare")
