"""What may be asked: every field typed, ranged, with its unit and one line of help."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from backprop_core.frozen import KEY_IF_SET, NO_KEY, Spec
from backprop_core.texts import HUB_ID, NAME, ROWS_FILE, LineName, Prose, compiles


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

    path: str = Field(
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
    heldout: str | None = Field(
        None, description="A file of held-out rows; default: a tenth of the rows, by hash.", json_schema_extra=NO_KEY
    )
    rows: int | None = Field(None, ge=1, description="Train on the first N rows by hash; the held-out set stays whole.")
    skip: int = Field(0, ge=0, description="Leave out the first N training rows by hash (windows of one dataset).")
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="Share of malformed rows above which it is an error.")

    def on_hub(self, below: Path = Path()) -> bool:
        """Whether it is a dataset of the Hub: OWNER/NAME, no name of a file of rows, and nothing that is here."""
        looks_so = HUB_ID.fullmatch(self.path) and not ROWS_FILE.search(self.path)
        return bool(looks_so) and not (below / self.path).exists()


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
    heldout_max: int = Field(200, ge=1, description="Held-out rows per task that are scored, first by hash.")
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


class GateSpec(Spec):
    """When a candidate may go live: better on average than champion and base, and clearly worse on no task."""

    max_drop: float = Field(0.01, ge=0, le=1, description="How much of its score a task may lose, in the metric.")
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="How sure the bootstrap must be that the average rose, and that a task lost more than that.",
    )
    canaries: list[CanarySpec] = Field(
        [],
        description="Prompts that it has to answer as expected, but for those that the champion fails too.",
        json_schema_extra=KEY_IF_SET,
    )


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
