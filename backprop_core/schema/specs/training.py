"""What a run trains on and how: base, rows, LoRA, merge."""

import os.path
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from backprop_core.schema.field_types import HUB_ID, NAME, ROWS_FILE, PathOrAddress
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Spec


class ModelSpec(Spec):
    """The base model."""

    name: str = Field("Qwen/Qwen2.5-7B-Instruct", min_length=1, description="Hub id, or a local directory.")
    revision: str | None = Field(None, description="Hub revision; the commit is recorded.")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="While it trains: nf4 is training.precision=nf4.", json_schema_extra=NO_KEY
    )


RowFormat = Literal["auto", "sharegpt", "messages", "alpaca", "prompt-completion", "question-answer", "text"]


class DatasetSpec(Spec):
    """One batch of rows."""

    path: PathOrAddress = Field(
        min_length=1,
        description="A file, a directory of files, any fsspec URL, or OWNER/NAME of a dataset on the Hub.",
        json_schema_extra=NO_KEY,
    )
    revision: str | None = Field(
        None, description="Of a dataset on the Hub; the commit is recorded.", json_schema_extra=NO_KEY
    )
    config: str | None = Field(
        None, description="Of a dataset on the Hub; default: its card's default.", json_schema_extra=NO_KEY
    )
    split: str | None = Field(None, description="Of a dataset on the Hub; default: train.", json_schema_extra=NO_KEY)
    task: str | None = Field(None, pattern=NAME, description="What its held-out score is kept for; default: file stem.")
    format: RowFormat = Field("auto", description="Row format; detected from the first rows by default.")
    columns: dict[str, str] = Field(default_factory=dict, description="Field of the format -> column of the file.")
    heldout: PathOrAddress | None = Field(
        None, description="A file of held-out rows; default: a tenth of the rows, by hash.", json_schema_extra=NO_KEY
    )
    rows: int | None = Field(None, ge=1, description="Train on the first N rows by hash; the held-out set stays whole.")
    skip: int = Field(0, ge=0, description="Leave out the first N training rows by hash (windows of one dataset).")
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="Share of malformed rows above which it is an error.")

    def on_hub(self, below: Path = Path()) -> bool:
        """Whether it is a dataset of the Hub: OWNER/NAME, no name of a file of rows, and nothing that is here."""
        looks_so = HUB_ID.fullmatch(self.path) and not ROWS_FILE.search(self.path)
        return bool(looks_so) and not os.path.exists(below / self.path)


MOST_RANK = 1024
STARTS = {"pissa", "loftq"}  # variants that are ways to start, and end as an ordinary adapter of twice the rank
Backend = Literal["transformers", "unsloth"]


class LoraSpec(Spec):
    """The adapter's shape. Constant along a line."""

    rank: int = Field(16, ge=1, le=MOST_RANK, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="Scale: the update is alpha/rank · B·A.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get an adapter."
    )
    variant: Literal["lora", "rslora", "dora", "pissa", "loftq"] = Field(
        "lora",
        description="rslora: scale alpha/√rank; dora: learned magnitudes beside B·A; pissa, loftq (nf4): a first run "
        "from the base's principal components, or from what quantization loses of it.",
        json_schema_extra=KEY_IF_SET,
    )

    @property
    def committed(self) -> "LoraSpec":
        """The shape of the adapter that comes out."""
        if self.variant not in STARTS:
            return self
        return self.model_copy(update={"rank": 2 * self.rank, "alpha": 2 * self.alpha, "variant": "lora"})

    @model_validator(mode="after")
    def _twice_the_rank(self) -> Self:
        if self.committed.rank > MOST_RANK:
            raise ValueError(f"{self.variant} makes an adapter of twice the rank, at most {MOST_RANK}")
        return self


class TrainSpec(Spec):
    """One LoRA training run."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps; default: from epochs.")
    epochs: float = Field(3, gt=0, le=1000, description="Passes over the rows, when steps is not given.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak of the cosine schedule.")
    batch_size: int = Field(16, ge=1, le=65536, description="Examples per optimizer step.")
    max_length: int = Field(2048, ge=16, description="Tokens per example after templating; longer ones are cut.")
    token_budget: int = Field(4096, ge=16, description="Padded tokens per micro-batch.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps that warm up, at most 20 steps.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay on A and B, not on magnitudes.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    precision: Literal["auto", "fp32", "bf16", "nf4"] = Field(
        "auto", description="Base weights while it trains; auto: bf16 on a GPU. nf4 is QLoRA."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds the adapter's start and the order of the rows.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one.")
    checkpoint_seconds: float = Field(
        300, ge=0, description="Time between checkpoints; 0: after every step.", json_schema_extra=NO_KEY
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="A checkpoint after so many steps too.", json_schema_extra=NO_KEY
    )
    checkpoints_kept: int = Field(
        2, ge=1, description="Checkpoints of a run that are kept until it is done.", json_schema_extra=NO_KEY
    )
    inexact_resume: bool = Field(
        False,
        description="Go on from a checkpoint of another machine or other versions: same order of rows, not same bits.",
        json_schema_extra=NO_KEY,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute activations twice instead of keeping them; auto: once memory runs out.",
        json_schema_extra=NO_KEY,
    )
    oom_recovery: bool = Field(
        True,
        description="When memory runs out, do the step again with less of it at a time.",
        json_schema_extra=NO_KEY,
    )
    replay: float = Field(
        0,
        ge=0,
        le=0.1,
        description="Share of the rows of each earlier dataset of the run or line that each epoch of later runs trains "
        "again, others in each.",
        json_schema_extra=KEY_IF_SET,
    )
    processes: int = Field(
        1, ge=1, le=64, description="Processes that train together, one a GPU.", json_schema_extra=KEY_IF_SET
    )
    backend: Backend = Field(
        "transformers",
        description="What runs the model while it trains; unsloth: in the environment of BACKPROPAGATE_UNSLOTH_PYTHON.",
        json_schema_extra=KEY_IF_SET,
    )
    lora: LoraSpec = LoraSpec()
    lora_plus: float | None = Field(
        None,
        ge=1,
        le=1000,
        description="LoRA+: how many times faster B learns than A; default: as fast.",
        json_schema_extra=KEY_IF_SET,
    )


Strategy = Literal["slao", "slao-kept", "slao-plain", "average", "sequential", "delta", "svd", "ties", "dare"]
WITHOUT_WEIGHT = {"sequential", "svd", "ties", "dare"}  # strategies in which λ is not what the last run counts for


class MergeSpec(Spec):
    """How a run's adapter goes into the merged one. Constant along a line."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    strategy: Strategy = Field(
        "slao", description="How the merged adapter comes about; docs/continual.md says when to take which."
    )
    merge_a: bool = Field(
        False, description="Average A as B is, where the strategy would replace it.", json_schema_extra=KEY_IF_SET
    )
    weight: Literal["1/sqrt(i)", "1/i", "search"] | Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        alias="lambda",
        description="What the i-th run counts for in the merged adapter; default: the strategy's own; search: what a "
        "quarter of the held-out rows, kept from the gate, likes best.",
        json_schema_extra=KEY_IF_SET,
    )

    @model_validator(mode="after")
    def _something_to_search(self) -> Self:
        if self.searches and self.strategy in WITHOUT_WEIGHT:
            raise ValueError(f"{self.strategy} has no lambda to search for")
        return self

    @property
    def searches(self) -> bool:
        """Whether each merge looks for its λ."""
        return self.weight == "search"

    @property
    def orthonormal_start(self) -> bool:
        """Whether the next run starts from orthonormal rows of A."""
        return self.strategy in ("slao", "slao-kept")

    @property
    def keeps_function(self) -> bool:
        """Whether it then answers as the run before did."""
        return self.strategy == "slao-kept"

    @property
    def takes_all(self) -> bool:
        """Whether each merge goes back to the tuned adapters of all runs."""
        return self.strategy in ("svd", "ties", "dare")
