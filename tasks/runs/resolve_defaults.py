"""Fills in what a run's spec leaves open, before anything is computed: device, precision, all of `training`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from backprop_core.data.forgotten_rows import marked
from backprop_core.data.row_sample import sampled
from backprop_core.data.token_lengths import Counter
from backprop_core.errors import (
    ArchitectureUnsupported,
    ConfigInvalid,
    FormatsMixed,
    FormatUnknown,
    GPUNotAvailable,
    InputNotFound,
    InputValidationFailed,
    ModelLoadFailed,
    NoRows,
)
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import BaseRef, Choice, SourceRef
from backprop_core.schema.specs import DatasetSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of, part
from backprop_core.training import time_estimate
from backprop_core.training.defaults import GIVEN, Chosen, Data, choose, data_by, together, trained_on
from backprop_core.training.vram_estimate import Shape, shape_of

VERSION = 3  # of the cached data measurements
CPU_SECONDS = 30 * 60  # longer trainings use a CPU only with device=cpu
SLOW = 1e10  # FLOP/s of a matrix product: what is short at this speed needs no speed measurement
UNREADABLE = (ConfigInvalid, FormatsMixed, FormatUnknown, InputNotFound, InputValidationFailed, NoRows)


def decide(
    spec: RunSpec, base: BaseRef, sources: Sequence[SourceRef], store: Store, *, later: bool, least: int = 0
) -> tuple[RunSpec, list[Choice]]:
    """The complete spec, and the chosen fields with reasons. `later`: the run continues a line.

    `least` is the maximum length of the line's rows so far: no smaller one is chosen while it fits into memory.

    Choices that depend on memory use the total of the card, not what is free now, so that the same command has the same
    cache keys. Raises GPUNotAvailable, ConfigInvalid.
    """
    directory, _ = bases.locate(base.name, base.revision)
    shape, data = (
        known_shape(directory),
        [data_in(*each, directory, store) for each in zip(sources, spec.datasets, strict=True)],
    )
    no_gpu = None if spec.training.device == "cpu" else devices.missing_gpu(own_torch=not settings().worker_python)
    if no_gpu and spec.training.device == "cuda":
        raise no_gpu
    device: Literal["cpu", "cuda"] = "cpu" if no_gpu or spec.training.device == "cpu" else "cuda"
    devices.check_enough(device, spec.training.processes)
    training, choices = filled(shape, asked(spec), data, device, later=later, least=least)
    if no_gpu:
        size = shape.parameters if shape else about_parameters(directory)
        choices = [on_the_cpu(size, training, data, no_gpu), *choices]
    training = training.model_copy(update={"device": device, "precision": precision_of(spec, training, device)})
    if training.too_long is None:
        training = training.model_copy(update={"too_long": "drop"})
    model = spec.model.model_copy(update={"name": base.name, "revision": base.revision})
    return spec.model_copy(update={"model": model, "training": training}), choices


def filled(
    shape: Shape | None, given: TrainSpec, data: Sequence[Data | None], device: str, *, later: bool, least: int = 0
) -> tuple[TrainSpec, list[Choice]]:
    """`given` with chosen fields; a model of unknown shape gets the spec's defaults."""
    if shape is None:
        return given, []
    memory = devices.memory() if device == "cuda" else None
    known = [one for one in data if one]
    together_ = together(known) if known else None
    made: Chosen = choose(shape, given, together_, memory and memory.total, later=later, runs=len(data), least=least)
    return made.spec, [choice for choice in made.choices if choice.reason != GIVEN and choice.value != "auto"]


def known_shape(directory: Path) -> Shape | None:
    """The model's shape from its config.json; None for an unknown model type."""
    try:
        return shape_of(directory.name, bases.read_json(directory / "config.json"))
    except (ArchitectureUnsupported, ModelLoadFailed):
        return None


def about_parameters(directory: Path) -> int:
    """Estimate the number of parameters from the size of the weights, as if they were bf16."""
    return sum(file.stat().st_size for file in bases.weights(directory)) // 2


def data_in(source: SourceRef, dataset: DatasetSpec, base: Path, store: Store) -> Data | None:
    """Measure the training data of this dataset (cached); None if it cannot be read.

    Curation reports the reason later, so that the run's record has it. Tokens are counted with the tokenizer in the
    directory `base`. Raises TokenizerMismatch, ModelLoadFailed.
    """
    tokenizer = bases.tokenizer_digest(base, store)
    try:
        source = marked(source, dataset, store)
    except UNREADABLE:
        return None
    key = digest_of([VERSION, part(source), dataset.format, dataset.columns, dataset.max_bad_rows, tokenizer])
    note = store.layout.note("data", key)
    if not note.is_file():
        try:
            found = data_by(*sampled(source, dataset), Counter(base))
        except UNREADABLE:
            return None
        write_atomic(note, found.model_dump_json())
    return trained_on(Data.model_validate_json(note.read_bytes()), dataset)


def on_the_cpu(parameters: int, training: TrainSpec, data: Sequence[Data | None], no_gpu: GPUNotAvailable) -> Choice:
    """Choose the CPU if training takes minutes there. Raises GPUNotAvailable if it takes longer."""
    flops = sum(time_estimate.training_flops(parameters, one, training) for one in data if one)
    takes = time_estimate.seconds(flops, SLOW)
    if takes > CPU_SECONDS:
        takes = time_estimate.seconds(flops, time_estimate.cpu_speed())
    if takes > CPU_SECONDS:
        raise GPUNotAvailable(
            f"{no_gpu.message}, and training would take about {takes / 3600:.1f} h on this CPU", hint=no_gpu.hint
        )
    return Choice(field="training.device", value="cpu", reason=f"{no_gpu.message}; it takes less than half an hour")


def asked(spec: RunSpec) -> TrainSpec:
    """The training spec, with the model's quantization applied."""
    if spec.model.quantization == "none":
        return spec.training
    return spec.training.model_copy(update={"precision": precision_of(spec, spec.training, "cuda")})


def precision_of(spec: RunSpec, training: TrainSpec, device: Literal["cpu", "cuda"]) -> str:
    """The precision of the base weights in training. Raises ConfigInvalid for contradictory settings."""
    if spec.model.quantization == "none":
        return {"cpu": "fp32", "cuda": "bf16"}[device] if training.precision == "auto" else training.precision
    if training.precision not in ("auto", spec.model.quantization):
        raise ConfigInvalid(
            f"model.quantization={spec.model.quantization} and training.precision={training.precision} contradict each "
            "other",
            hint="remove one of them",
        )
    return spec.model.quantization
