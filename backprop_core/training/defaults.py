"""Default hyperparameters: a pure function of the model's size, the data and the GPU's memory, with a reason each.

Sources: targets, alpha and small batches from "LoRA Without Regret" (Thinking Machines, 2025), rank from its capacity
rule with our own bounds; learning rates are conservative compared to published sweeps.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from backprop_core.data.judged_answers import with_longer_answer
from backprop_core.data.loading import ChatRow
from backprop_core.data.splits import HELDOUT_SHARE
from backprop_core.data.token_lengths import Counter
from backprop_core.errors import NoRows
from backprop_core.schema.field_types import Precision
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Choice
from backprop_core.schema.specs import DatasetSpec, LoraSpec, TrainSpec
from backprop_core.training.batch_plan import total_steps
from backprop_core.training.token_budget import SAFE, cpu_budget, gpu_budget
from backprop_core.training.vram_estimate import GIB, Setting, Shape, memory

GIVEN = "given"  # the reason of a field that the user has set
LEAST_RANK, MOST_RANK = 16, 256
LADDER = (2048, 1024, 512)  # lengths to try if a longer one does not fit; shorter caps save nothing
LEAST_STEPS = 50
CPU_BUDGET = "padded tokens per micro-batch: about 1 GiB of activations; more is no faster on a CPU"


class Sample(Record):
    """Token counts of a sample of a dataset's rows."""

    rows: int = Field(description="Rows of the dataset.")
    exact: bool = Field(description="Counted by the model's tokenizer; else estimated by bytes.")
    tokens: list[int]
    before: list[int] = Field(description="Tokens before the first answer.")


class Data(Record):
    """Size of a dataset, as needed for the defaults."""

    examples: int = Field(ge=1)
    tokens: int = Field(ge=0, description="All tokens of one epoch.")
    label_tokens: int = Field(ge=0, description="All label tokens of one epoch.")
    length: int = Field(ge=1, description="99th percentile of example lengths, in tokens.")
    samples: list[Sample] = Field(default_factory=list, description="The samples behind these numbers, per dataset.")


class Cut(NamedTuple):
    """Rows, how many of them exceed a length, and how many of these lose all of their answers."""

    rows: int
    cut: int
    lost: int


class Chosen(NamedTuple):
    """The complete spec, and the reason of each field, "given" if the user has set it."""

    spec: TrainSpec
    choices: list[Choice]


class Fit(NamedTuple):
    """The settings that depend on memory."""

    setting: Setting
    length: int
    fits: bool


def data_by(drawn: Sequence[ChatRow], count: int, counter: Counter) -> Data:
    """Measure `count` rows by a sample of them, a pair by its longer answer. Raises NoRows, TokenizerMismatch."""
    if not drawn:
        raise NoRows("the dataset has no rows", hint="use a file with rows")
    counted = counter.count(list(map(with_longer_answer, drawn)))
    share = count / len(counted)
    lengths = sorted(row.tokens for row in counted)
    tokens, before = [row.tokens for row in counted], [row.before for row in counted]
    return Data(
        examples=count,
        tokens=round(share * sum(lengths)),
        label_tokens=round(share * sum(row.labels for row in counted)),
        length=max(1, lengths[math.ceil(0.99 * len(lengths)) - 1]),
        samples=[Sample(rows=count, exact=counter.exact, tokens=tokens, before=before)],
    )


def cut_at(data: Data, length: int) -> Cut:
    """How many rows are cut at a length: an estimate, exact if all rows were counted."""
    cut = lost = 0.0
    for part in data.samples:
        share = part.rows / len(part.tokens)
        cut += share * sum(tokens > length for tokens in part.tokens)
        lost += share * sum(before >= length for before in part.before)
    return Cut(sum(part.rows for part in data.samples), math.ceil(cut), math.ceil(lost))


def what_is_cut(data: Data, length: int) -> str:
    """The same in words; empty if no row was counted."""
    if not data.samples:
        return ""
    found, about = cut_at(data, length), any(part.rows > len(part.tokens) for part in data.samples)
    if not found.cut:
        return "; none is longer" if not about else f"; none of {counted(data)} that were counted is longer"
    lost = f", {found.lost} of them before the answer begins" if found.lost else ""
    return f"; {'about ' if about else ''}{found.cut} of {found.rows} are longer{lost}"


def counted(data: Data) -> int:
    return sum(len(part.tokens) for part in data.samples)


def trained_on(data: Data, dataset: DatasetSpec) -> Data:
    """Estimate the part of a dataset that a run trains on: without held-out rows, `skip` and rows beyond `rows`."""
    left = data.examples - (0 if dataset.heldout else data.examples // HELDOUT_SHARE) - dataset.skip
    examples = max(1, min(left, dataset.rows or left))
    share = examples / data.examples
    changes = {"tokens": round(share * data.tokens), "label_tokens": round(share * data.label_tokens)}
    return data.model_copy(update={"examples": examples, **changes})


def together(datasets: Sequence[Data]) -> Data:
    """One measure for runs that share a spec: the smallest number of examples, and the largest of all else."""
    most = {name: max(getattr(data, name) for data in datasets) for name in ("tokens", "label_tokens", "length")}
    samples = [part for data in datasets for part in data.samples]
    return Data(examples=min(data.examples for data in datasets), samples=samples, **most)


def choose(
    shape: Shape,
    given: TrainSpec,
    data: Data | None,
    card: int | None,
    *,
    later: bool = False,
    runs: int = 1,
    least: int = 0,
) -> Chosen:
    """Choose the fields of `training`, in order, except those that `given` sets to anything but `auto`.

    `data` is None if there is none yet; `card`, the GPU's memory in bytes, is None without a GPU. A `later` run
    continues a line, whose rows have had at most `least` tokens. The spec is that of so many `runs`, one after another.
    """
    made = Choices(given)
    made.add("lora.target_modules", "all-linear", "an adapter on every linear layer learns as full training does")
    made.add("lora.rank", *rank(shape, data))
    made.add("lora.alpha", 32.0, "the update is alpha/rank · B·A: one learning rate serves every rank")
    made.add("learning_rate", *learning_rate(shape, later=later))
    if runs > 1 and "learning_rate" not in given.model_fields_set:
        made.add("later_learning_rate", made.spec.learning_rate / 2, "half of the first run's, as it is continued")
    if given.steps is None:
        made.add("epochs", *epochs(data))
    made.add("batch_size", *batch_size(data, made.spec))
    for field, value, reason in for_memory(shape, made.spec, data, card, least=least):
        made.add(field, value, reason)
    return Chosen(made.spec, made.choices)


class Choices:
    """The choices so far, and the resulting spec."""

    def __init__(self, given: TrainSpec) -> None:
        self.spec = given
        self.choices: list[Choice] = []
        set_ = {name for name in given.model_fields_set if getattr(given, name) != "auto"}
        self._given = set_ | {f"lora.{name}" for name in given.lora.model_fields_set}

    def add(self, field: str, value: Any, reason: str) -> None:
        """Choose a field's value, unless the user has set it."""
        part, _, name = field.rpartition(".")
        if field in self._given:
            value, reason = getattr(self.spec.lora if part else self.spec, name), GIVEN
        elif part:
            self.spec = self.spec.model_copy(update={"lora": self.spec.lora.model_copy(update={name: value})})
        else:
            self.spec = self.spec.model_copy(update={name: value})
        self.choices.append(Choice(field=f"training.{field}", value=value, reason=reason))


def rank(shape: Shape, data: Data | None) -> tuple[int, str]:
    """The smallest power of two with at least one LoRA parameter per label token, between 16 and 256."""
    if data is None:
        return LEAST_RANK, f"the minimum, without data; else from label tokens, at most {MOST_RANK}"
    per_rank = shape.lora_parameters(LoraSpec(rank=1))
    value = min(max(power_of_two(data.label_tokens / per_rank), LEAST_RANK), MOST_RANK)
    why = f"about {data.label_tokens} label tokens, {per_rank} parameters per rank"
    return value, f"{why}; {LEAST_RANK} to {MOST_RANK}; constant along a line"


def learning_rate(shape: Shape, *, later: bool = False) -> tuple[float, str]:
    """By billions of parameters, rounded down; half of it in later runs of a line."""
    billions = shape.parameters // 10**9
    value = 5e-4 if billions <= 4 else 2e-4 if billions <= 14 else 1e-4
    why = f"{shape.parameters / 1e6:.0f}M parameters"
    if later:
        return value / 2, f"{why}; half of {value:g}, as it continues a line"
    return value, f"{why}; half of it in later runs of a line"


def epochs(data: Data | None) -> tuple[float, str]:
    if data is None:
        return 3.0, "without data; 2 from 1,000 examples, 1 from 10,000"
    value = 3.0 if data.examples < 1000 else 2.0 if data.examples < 10_000 else 1.0
    return value, f"{data.examples} examples"


def batch_size(data: Data | None, spec: TrainSpec) -> tuple[int, str]:
    """8, 16 or 32 examples, halved until there are 50 steps, as LoRA works better with small batches."""
    if data is None:
        return 16, "without data; 8 under 500 examples, 32 from 10,000"
    size = 8 if data.examples < 500 else 16 if data.examples < 10_000 else 32
    while spec.steps is None and size > 1 and steps(data, spec, size) < LEAST_STEPS:
        size //= 2
    return size, f"{data.examples} examples make {steps(data, spec, size)} steps"


def steps(data: Data, spec: TrainSpec, size: int) -> int:
    return total_steps(data.examples, spec.model_copy(update={"batch_size": size}))


def for_memory(
    shape: Shape, spec: TrainSpec, data: Data | None, card: int | None, *, least: int = 0
) -> Iterator[tuple[str, Any, str]]:
    """Length, precision, checkpointing and micro-batch: (field, value, reason)."""
    wanted, why = length(shape, data)
    if (known := min(least, shape.max_position_embeddings)) > wanted:
        wanted, why = known, f"as in the line so far; {why}"
    if card is None:
        yield "max_length", wanted, why
        yield "precision", "auto", "no GPU found or named: fp32 on the CPU"
        yield "token_budget", cpu_budget(shape, spec), CPU_BUDGET
        return
    fit = fitting(shape, spec, wanted, card)
    takes = f"{memory(shape, fit.setting, fit.length).total / GIB:.1f} of {card / GIB:.1f} GiB, one sequence at a time"
    shorter = f"{wanted} tokens do not fit" + (what_is_cut(data, fit.length) if data else "")
    yield "max_length", fit.length, why if fit.length == wanted else shorter
    yield "precision", fit.setting.precision, takes if fit.fits else f"nothing fits; the minimum is {takes}"
    if fit.setting.checkpointing:
        yield "gradient_checkpointing", "on", "needed to fit into memory; costs 50 % more FLOPs"
    else:
        yield "gradient_checkpointing", "auto", "not needed; turned on only if memory runs out"
    yield (
        "token_budget",
        max(fit.length, gpu_budget(shape, fit.setting, card)),
        "padded tokens per micro-batch: what fits, at least one sequence",
    )


def length(shape: Shape, data: Data | None) -> tuple[int, str]:
    """The smallest power of two that 99 % of the examples fit into, up to the model's maximum length."""
    if data is None:
        return min(LADDER[0], shape.max_position_embeddings), "without data; else what 99 % of the examples fit into"
    value = min(max(power_of_two(data.length), LADDER[-1]), shape.max_position_embeddings)
    by_bytes = any(not part.exact for part in data.samples)
    how = ", estimated by bytes, as there is no tokenizer.json" if by_bytes else ""
    return value, f"99 % of the rows have at most {data.length} tokens{how}{what_is_cut(data, value)}"


def fitting(shape: Shape, spec: TrainSpec, wanted: int, card: int) -> Fit:
    """The first setting that fits: bf16, then NF4, each first without gradient checkpointing; then shorter sequences.

    Fields that `spec` sets are not varied. If nothing fits, the setting with the least memory.
    """
    lengths = [wanted, *(shorter for shorter in LADDER if shorter < wanted)]
    if "max_length" in spec.model_fields_set:
        lengths = [spec.max_length]
    tried = [Fit(setting, tokens, True) for tokens in lengths for setting in settings(spec)]
    fitting = (fit for fit in tried if memory(shape, fit.setting, fit.length).total < SAFE * card)
    return next(fitting, tried[-1]._replace(fits=False))


def settings(spec: TrainSpec) -> list[Setting]:
    """The settings that `spec` leaves open, the fastest and most exact first."""
    precisions: tuple[Precision, ...] = ("bf16", "nf4") if spec.precision == "auto" else (spec.precision,)
    checkpointing = {"auto": (False, True), "on": (True,), "off": (False,)}[spec.gradient_checkpointing]
    return [
        Setting(precision=p, checkpointing=c, lora=spec.lora, optimizer=spec.optimizer)
        for p in precisions
        for c in checkpointing
    ]


def power_of_two(value: float) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(0, math.ceil(value) - 1).bit_length()
