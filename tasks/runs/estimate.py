"""`backprop estimate-vram`: GPU memory, time and default hyperparameters of a run, from its config and data."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field

from backprop_core.data.loading import find
from backprop_core.data.row_sample import sampled
from backprop_core.data.token_lengths import Counter
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import Precision
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Choice
from backprop_core.schema.specs import DatasetSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import presets, time_estimate
from backprop_core.training.defaults import Data, choose, data_by, trained_on
from backprop_core.training.token_budget import SAFE
from backprop_core.training.vram_estimate import GIB, Setting, Shape, longest, memory, micro_batch
from tasks.runs.machine_speed import speed_of
from tasks.runs.resolve_defaults import asked

Verdict = Literal["yes", "tightly", "no"]


class Way(Record):
    """One training setting, and its memory in GiB."""

    precision: Precision
    checkpointing: bool
    parts: dict[str, float]
    total: float
    fits: Verdict | None = Field(description="Whether it fits; None without a GPU.")
    longest: int | None = Field(description="Longest sequence in tokens that fits, one at a time.")


class Estimate(Record):
    """A model's size, and the memory of training it in several settings."""

    model: str
    parameters: int
    lora_parameters: int
    tokens: int = Field(description="Padded tokens of a micro-batch.")
    vram_gib: float | None = Field(description="Memory of the named GPU, or free memory of this machine's.")
    ways: list[Way]
    choices: list[Choice]
    seconds: float | None = Field(
        description="Estimated time of one training; None without data, or for a GPU not in this machine."
    )


def estimate(spec: RunSpec, dataset: DatasetSpec | None, vram_gib: float | None) -> Estimate:
    """The estimate of a run on this dataset, for a card of `vram_gib` or for the one that is here.

    Raises InputNotFound, ModelLoadFailed, ArchitectureUnsupported, AdapterMismatch, ConfigInvalid, and what reading the
    data raises.
    """
    shape, training = presets.shape_for(spec.model), asked(spec)
    named, here = (round(vram_gib * GIB) if vram_gib else None), devices.memory()
    free, total = named or (here and here.free), named or (here and here.total)
    data = data_in(dataset, bases.here(spec.model.name, spec.model.revision)) if dataset else None
    chosen = choose(shape, training, data, total)
    precisions: tuple[Precision, ...] = ("fp32",) if training.precision == "fp32" else ("bf16", "nf4")
    settings = [
        Setting(precision=precision, checkpointing=checkpointing, lora=training.lora, optimizer=training.optimizer)
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
        choices=chosen.choices,
        seconds=seconds(shape, data, chosen.spec) if data and not named else None,
    )


def seconds(shape: Shape, data: Data, training: TrainSpec) -> float | None:
    """Estimated seconds of one training on this machine's device."""
    speed = speed_of("cuda" if devices.visible_gpus() else "cpu", Store(settings().store_path))
    return speed and time_estimate.seconds(time_estimate.training_flops(shape.parameters, data, training), speed)


def way(shape: Shape, setting: Setting, tokens: int, free: int | None) -> Way:
    """Estimate the memory of one setting, and whether it fits."""
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
    """Whether it fits, with a margin for errors of the estimate."""
    return "yes" if needed < SAFE * free else "tightly" if needed < free else "no"


def preset_fields(name: str) -> dict[str, Any]:
    """The spec fields that a preset sets, by path. Raises ConfigInvalid."""
    return presets.fields(name)


def data_in(dataset: DatasetSpec, base: Path | None) -> Data:
    """Measure the training data of a dataset, with the base's tokenizer if it is on this machine."""
    with TemporaryDirectory() as scratch:
        rows = sampled(find(dataset, scratch=Path(scratch)), dataset)
        return trained_on(data_by(*rows, Counter(base)), dataset)


class PresetRow(Record):
    """A model that `--preset` knows."""

    preset: str
    model: str
    parameters: int
    context: int = Field(description="Its longest sequence, in tokens.")
    learning_rate: float


def preset_list() -> list[PresetRow]:
    """All presets."""
    return [
        PresetRow(
            preset=name,
            model=known.models[0],
            parameters=known.shape.parameters,
            context=known.shape.max_position_embeddings,
            learning_rate=presets.fields(name)["training.learning_rate"],
        )
        for name, known in presets.PRESETS.items()
    ]
