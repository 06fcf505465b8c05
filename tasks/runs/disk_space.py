"""Whether what a run is about to write fits on the disk, found out before it is computed."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backprop_core.errors import ArchitectureUnsupported, DiskFull
from backprop_core.export.stages import WRITTEN_DIRECTLY
from backprop_core.schema.specs import ModelSpec, RunSpec, TrainSpec
from backprop_core.training.presets import shape_for
from backprop_core.training.vram_estimate import GIB, Shape

BITS = {  # of a weight in a GGUF file, about
    **{"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q5_0": 5.5},
    **{"q4_k_m": 4.9, "q4_0": 4.5, "q3_k_m": 3.9, "q2_k": 3.4},
}
ADAPTER, CHECKPOINT = 4, 12  # bytes a LoRA parameter: float32, and with AdamW's two moments


def known_shape(model: ModelSpec) -> Shape | None:
    """The model's size; None for one of a kind that is not known."""
    try:
        return shape_for(model)
    except ArchitectureUnsupported:
        return None


def files(spec: RunSpec) -> list[str]:
    """The kinds of weights that a run's export writes, as files of GGUF call them."""
    wanted = list(spec.export.quantizations)
    between = ["f16"] if set(wanted) - WRITTEN_DIRECTLY and "f16" not in wanted else []
    return [*between, *wanted, *(["f16"] if "merged" in spec.export.packages else [])]


def of_files(shape: Shape, kinds: list[str]) -> int:
    """Bytes of these files, about."""
    return round(sum(BITS[kind] / 8 for kind in kinds) * shape.parameters)


def of_checkpoints(shape: Shape, training: TrainSpec) -> int:
    """Bytes of a training's checkpoints, one more than are kept while it is written."""
    return CHECKPOINT * (training.checkpoints_kept + 1) * shape.lora_parameters(training.lora)


def of_adapters(shape: Shape, training: TrainSpec, count: int) -> int:
    """Bytes of so many adapters."""
    return ADAPTER * count * shape.lora_parameters(training.lora)


def of_training(shape: Shape, spec: RunSpec) -> int:
    """Bytes that a run writes from its first training on, about: then nothing made of its adapter is there yet."""
    written = of_adapters(shape, spec.training, 2 * len(spec.datasets)) + of_checkpoints(shape, spec.training)
    return written + of_files(shape, files(spec))


def kind_of(stage: str, parameters: Mapping[str, Any]) -> str | None:
    """What a stage writes of a model's weights; None for a stage that writes none."""
    if stage in ("convert", "convert_outside", "quantize", "quantize_weighted"):
        return str(parameters.get("quantization") or parameters["outtype"])
    return "f16" if parameters.get("package") == "merged" else None


def check(spec: RunSpec, root: Path, *, stage: str, kind: str | None) -> None:
    """Raise DiskFull if a training and all that follows it, or a file of this kind, is more than the disk has left."""
    shape = known_shape(spec.model) if stage == "train" or kind in BITS else None
    if shape is None:
        return
    needed = of_training(shape, spec) if stage == "train" else of_files(shape, [kind] if kind else [])
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DiskFull(
            f"{stage} and what follows it write about {needed / GIB:.2f} GiB, and {root} has {free / GIB:.2f} GiB left",
            hint="free some space, choose a smaller quantization, or another BACKPROPAGATE_STORE",
        )
