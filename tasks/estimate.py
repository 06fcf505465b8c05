"""What a run would take of a GPU, and what we would choose: from the model's config and the data, before anything."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field

from backprop_core import devices
from backprop_core.formats import read, snapshot
from backprop_core.refs import Record
from backprop_core.specs import DatasetSpec, RunSpec, TrainSpec
from backprop_core.training import presets
from backprop_core.training.defaults import SAFE, Choice, Data, choose, data_of
from backprop_core.training.memory import GIB, Precision, Setting, Shape, longest, memory, micro_batch

Verdict = Literal["yes", "tightly", "no"]


class Way(Record):
    """One way to train, and what it takes, in GiB."""

    precision: Precision
    checkpointing: bool
    parts: dict[str, float]
    total: float
    fits: Verdict | None = Field(description="None without a GPU.")
    longest: int | None = Field(description="Tokens of the longest sequence that fits, one at a time.")


class Estimate(Record):
    """A model's size and what training it takes, by the ways to do so."""

    model: str
    parameters: int
    lora_parameters: int
    tokens: int = Field(description="Padded tokens of a micro-batch.")
    vram_gib: float | None = Field(description="Of the card that was named, or free on the one that is here.")
    ways: list[Way]
    choices: list[Choice]


def estimate(spec: RunSpec, dataset: DatasetSpec | None, vram_gib: float | None) -> Estimate:
    """The estimate of a run on this dataset, for a card of `vram_gib` or for the one that is here.

    Raises InputNotFound, ModelLoadFailed, ArchitectureUnsupported, AdapterMismatch, ConfigInvalid, and what reading the
    data raises.
    """
    shape, training = presets.shape_for(spec.model), asked(spec)
    free = round(vram_gib * GIB) if vram_gib else devices.free_memory()
    precisions: tuple[Precision, ...] = ("fp32",) if training.precision == "fp32" else ("bf16", "nf4")
    settings = [
        Setting(precision=precision, checkpointing=checkpointing, lora=training.lora)
        for precision in precisions
        for checkpointing in (False, True)
    ]
    return Estimate(
        model=spec.model.name,
        parameters=shape.parameters,
        lora_parameters=shape.lora_parameters(training.lora),
        tokens=micro_batch(training),
        vram_gib=free and round(free / GIB, 3),
        ways=[way(shape, setting, micro_batch(training), free) for setting in settings],
        choices=choose(shape, training, data_in(dataset) if dataset else None, free),
    )


def asked(spec: RunSpec) -> TrainSpec:
    """How to train, with a quantization that was asked of the model."""
    from tasks.prepare import precision_of

    if spec.model.quantization == "none":
        return spec.training
    return spec.training.model_copy(update={"precision": precision_of(spec, "cuda")})


def way(shape: Shape, setting: Setting, tokens: int, free: int | None) -> Way:
    """What one setting takes, and whether it fits."""
    needed = memory(shape, setting, tokens)
    return Way(
        precision=setting.precision,
        checkpointing=setting.checkpointing,
        parts={name: round(size / GIB, 3) for name, size in needed.model_dump().items()},
        total=round(needed.total / GIB, 3),
        fits=None if free is None else verdict(needed.total, free),
        longest=None if free is None else longest(shape, setting, int(SAFE * free)),
    )


def verdict(needed: int, free: int) -> Verdict:
    """Whether it fits, given that an estimate can be wrong."""
    return "yes" if needed < SAFE * free else "tightly" if needed < free else "no"


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a spec, by path, that a preset sets. Raises ConfigInvalid."""
    return presets.fields(name)


def data_in(dataset: DatasetSpec) -> Data:
    """What a dataset holds, by reading it."""
    with TemporaryDirectory() as scratch:
        return data_of(read(snapshot(dataset.path, scratch=Path(scratch)), dataset).rows)
