"""What we choose for a run: a pure function of the model's size, the data and the card's memory, with reasons.

Sources: targets, alpha and small batches from "LoRA Without Regret" (Thinking Machines, 2025), rank from its capacity
rule, with bounds of ours; learning rates are conservative against published sweeps.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from backprop_core.errors import NoRows
from backprop_core.formats import ChatRow
from backprop_core.frozen import Record
from backprop_core.refs import Choice
from backprop_core.specs import DatasetSpec, LoraSpec, TrainSpec
from backprop_core.training.memory import GIB, Precision, Setting, Shape, longest, memory
from backprop_core.training.plan import total_steps

CHARACTERS = 4  # a token, about
GIVEN = "given"  # the reason of a field that was not ours to choose
LEAST_RANK, MOST_RANK = 16, 256
LADDER = (2048, 1024, 512)  # lengths that are tried when a longer one does not fit; a shorter cap saves nothing
SAFE = 0.85  # of the memory: an estimate below it fits
LEAST_STEPS = 50
HELDOUT_SHARE = 10  # one row in ten, unless the dataset brings held-out rows


class Data(Record):
    """What the defaults ask of a dataset."""

    examples: int = Field(ge=1)
    tokens: int = Field(ge=0, description="All that are read, in one epoch.")
    label_tokens: int = Field(ge=0, description="All that is learned from, in one epoch.")
    length: int = Field(ge=1, description="Tokens; 99 % of the examples are not longer.")


class Chosen(NamedTuple):
    """The spec with everything chosen, and each field of it with its reason, "given" if it was."""

    spec: TrainSpec
    choices: list[Choice]


class Fit(NamedTuple):
    """The settings that memory decides."""

    setting: Setting
    length: int
    fits: bool


def data_of(rows: Sequence[ChatRow]) -> Data:
    """What rows hold, without a tokenizer: four characters count as a token. Raises NoRows."""
    if not rows:
        raise NoRows("the dataset has no rows", hint="give a file with rows in it")
    lengths = sorted(sum(map(len, texts(row))) // CHARACTERS + 1 for row in rows)
    labels = sum(sum(map(len, texts(row, only="assistant"))) // CHARACTERS for row in rows)
    length = lengths[math.ceil(0.99 * len(rows)) - 1]
    return Data(examples=len(rows), tokens=sum(lengths), label_tokens=labels, length=length)


def trained_on(data: Data, dataset: DatasetSpec) -> Data:
    """What of a dataset a run trains on, about: without what is held out, `skip`ped, or beyond `rows`."""
    left = data.examples - (0 if dataset.heldout else data.examples // HELDOUT_SHARE) - dataset.skip
    examples = max(1, min(left, dataset.rows or left))
    share = examples / data.examples
    changes = {"tokens": round(share * data.tokens), "label_tokens": round(share * data.label_tokens)}
    return data.model_copy(update={"examples": examples, **changes})


def together(datasets: Sequence[Data]) -> Data:
    """One measure for runs that share a spec: as many examples as the smallest has, all else as in the largest."""
    most = {name: max(getattr(data, name) for data in datasets) for name in ("tokens", "label_tokens", "length")}
    return Data(examples=min(data.examples for data in datasets), **most)


def texts(row: ChatRow, *, only: str | None = None) -> Iterator[str]:
    """The texts of a row, all or those of one role; raw text is of every role."""
    if "text" in row:
        yield row["text"]
    for message in row.get("messages", ()):
        if only in (None, message["role"]):
            yield message["content"]


def choose(shape: Shape, given: TrainSpec, data: Data | None, card: int | None, *, later: bool = False) -> Chosen:
    """The fields of `training`, in order; those that `given` sets, to anything but `auto`, stay.

    `data` is None where there is none yet, `card` (bytes of its memory) where there is no GPU. A `later` run continues
    a line.
    """
    made = Choices(given)
    made.add("lora.target_modules", "all-linear", "an adapter on every linear layer learns as full training does")
    made.add("lora.rank", *rank(shape, data))
    made.add("lora.alpha", 32.0, "the update is alpha/rank · B·A: one learning rate serves every rank")
    made.add("learning_rate", *learning_rate(shape, later=later))
    if given.steps is None:
        made.add("epochs", *epochs(data))
    made.add("batch_size", *batch_size(data, made.spec))
    for field, value, reason in for_memory(shape, made.spec, data, card):
        made.add(field, value, reason)
    return Chosen(made.spec, made.choices)


class Choices:
    """The choices so far, and the spec that they make."""

    def __init__(self, given: TrainSpec) -> None:
        self.spec = given
        self.choices: list[Choice] = []
        set_ = {name for name in given.model_fields_set if getattr(given, name) != "auto"}
        self._given = set_ | {f"lora.{name}" for name in given.lora.model_fields_set}

    def add(self, field: str, value: Any, reason: str) -> None:
        """Choose, unless it was given."""
        part, _, name = field.rpartition(".")
        if field in self._given:
            value, reason = getattr(self.spec.lora if part else self.spec, name), GIVEN
        elif part:
            self.spec = self.spec.model_copy(update={"lora": self.spec.lora.model_copy(update={name: value})})
        else:
            self.spec = self.spec.model_copy(update={name: value})
        self.choices.append(Choice(field=f"training.{field}", value=value, reason=reason))


def rank(shape: Shape, data: Data | None) -> tuple[int, str]:
    """The least power of two that gives a LoRA parameter to each label token, within 16 and 256."""
    if data is None:
        return LEAST_RANK, f"without data the least; else from label tokens, {MOST_RANK} at most"
    per_rank = shape.lora_parameters(LoraSpec(rank=1))
    value = min(max(power_of_two(data.label_tokens / per_rank), LEAST_RANK), MOST_RANK)
    why = f"about {data.label_tokens} label tokens, {per_rank} parameters a rank"
    return value, f"{why}; {LEAST_RANK} at least, {MOST_RANK} at most; constant along a line"


def learning_rate(shape: Shape, *, later: bool = False) -> tuple[float, str]:
    """By whole billions of parameters, as models are named; half of it in later runs of a line."""
    billions = shape.parameters // 10**9
    value = 5e-4 if billions <= 4 else 2e-4 if billions <= 14 else 1e-4
    why = f"{shape.parameters / 1e6:.0f}M parameters"
    if later:
        return value / 2, f"{why}; half of {value:g}, for the line goes on"
    return value, f"{why}; half of it in later runs of a line"


def epochs(data: Data | None) -> tuple[float, str]:
    if data is None:
        return 3.0, "without data; 2 from 1,000 examples, 1 from 10,000"
    value = 3.0 if data.examples < 1000 else 2.0 if data.examples < 10_000 else 1.0
    return value, f"{data.examples} examples"


def batch_size(data: Data | None, spec: TrainSpec) -> tuple[int, str]:
    """8, 16 or 32 examples, halved until the epochs make 50 steps: LoRA dislikes large batches."""
    if data is None:
        return 16, "without data; 8 under 500 examples, 32 from 10,000"
    size = 8 if data.examples < 500 else 16 if data.examples < 10_000 else 32
    while spec.steps is None and size > 1 and steps(data, spec, size) < LEAST_STEPS:
        size //= 2
    return size, f"{data.examples} examples make {steps(data, spec, size)} steps"


def steps(data: Data, spec: TrainSpec, size: int) -> int:
    return total_steps(data.examples, spec.model_copy(update={"batch_size": size}))


def for_memory(shape: Shape, spec: TrainSpec, data: Data | None, card: int | None) -> Iterator[tuple[str, Any, str]]:
    """Length, precision, checkpointing and micro-batch: (field, value, reason)."""
    wanted, why = length(shape, data)
    if card is None:
        yield "max_length", wanted, why
        yield "precision", "auto", "no GPU here, and none named: fp32 on the CPU"
        return
    fit = fitting(shape, spec, wanted, card)
    takes = f"{memory(shape, fit.setting, fit.length).total / GIB:.1f} of {card / GIB:.1f} GiB, one sequence at a time"
    yield "max_length", fit.length, why if fit.length == wanted else f"{wanted} tokens do not fit"
    yield "precision", fit.setting.precision, takes if fit.fits else f"nothing fits; least is {takes}"
    if fit.setting.checkpointing:
        yield "gradient_checkpointing", "on", "it does not fit without; costs half as many FLOPs again"
    else:
        yield "gradient_checkpointing", "auto", "it fits without; only if memory runs out"
    yield "token_budget", token_budget(shape, fit, card), "padded tokens at a time: what fits, one sequence at least"


def token_budget(shape: Shape, fit: Fit, card: int) -> int:
    """The greatest power of two up to the usual one that fits, or one sequence."""
    most = min(longest(shape, fit.setting, int(SAFE * card)), TrainSpec().token_budget)
    return max(fit.length, (1 << most.bit_length()) // 2)


def length(shape: Shape, data: Data | None) -> tuple[int, str]:
    """The power of two that 99 % of the examples are within, no more than the model can read."""
    if data is None:
        return min(LADDER[0], shape.max_position_embeddings), "without data; else what 99 % of the examples are within"
    value = min(max(power_of_two(data.length), LADDER[-1]), shape.max_position_embeddings)
    return value, f"99 % of the examples have at most about {data.length} tokens"


def fitting(shape: Shape, spec: TrainSpec, wanted: int, card: int) -> Fit:
    """The first that fits: bf16 before NF4, each without checkpointing before with it; shorter sequences come last.

    What `spec` sets is not tried otherwise. If nothing fits, the least of all.
    """
    lengths = [wanted, *(shorter for shorter in LADDER if shorter < wanted)]
    if "max_length" in spec.model_fields_set:
        lengths = [spec.max_length]
    tried = [Fit(setting, tokens, True) for tokens in lengths for setting in settings(spec)]
    fitting = (fit for fit in tried if memory(shape, fit.setting, fit.length).total < SAFE * card)
    return next(fitting, tried[-1]._replace(fits=False))


def settings(spec: TrainSpec) -> list[Setting]:
    """The ways to train that `spec` leaves open, the fastest and most exact first."""
    precisions: tuple[Precision, ...] = ("bf16", "nf4") if spec.precision == "auto" else (spec.precision,)
    checkpointing = {"auto": (False, True), "on": (True,), "off": (False,)}[spec.gradient_checkpointing]
    return [Setting(precision=p, checkpointing=c, lora=spec.lora) for p in precisions for c in checkpointing]


def power_of_two(value: float) -> int:
    """The least that is not below `value`."""
    return 1 << max(0, math.ceil(value) - 1).bit_length()
