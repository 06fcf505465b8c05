"""Checks that the disk has space for a run's checkpoints, adapters and exports, before they are computed."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backprop_core.errors import ArchitectureUnsupported, DiskFull
from backprop_core.export.stages import WRITTEN_DIRECTLY
from backprop_core.schema.specs import ModelSpec, RunSpec, TrainSpec
from backprop_core.training.presets import shape_for
from backprop_core.training.vram_estimate import GIB, Shape

BITS = {  # approximate bits per weight in a GGUF file
    **{"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q5_0": 5.5},
    **{"q4_k_m": 4.9, "q4_0": 4.5, "q3_k_m": 3.9, "q2_k": 3.4},
}
ADAPTER, CHECKPOINT = 4, 12  # bytes per LoRA parameter: float32, and with AdamW's two moments


def known_shape(model: ModelSpec) -> Shape | None:
    """The model's shape; None for an unknown model type."""
    try:
        return shape_for(model)
    except ArchitectureUnsupported:
        return None


def files(spec: RunSpec) -> list[str]:
    """The weight types of the files that a run exports, as named in GGUF."""
    wanted = list(spec.export.quantizations)
    between = ["f16"] if set(wanted) - WRITTEN_DIRECTLY and "f16" not in wanted else []
    return [*between, *wanted, *(["f16"] if "merged" in spec.export.packages else [])]


def of_files(shape: Shape, kinds: list[str]) -> int:
    """Approximate bytes of these files."""
    return round(sum(BITS[kind] / 8 for kind in kinds) * shape.parameters)


def of_checkpoints(shape: Shape, training: TrainSpec) -> int:
    """Bytes of a training's checkpoints, including one more while it is written."""
    each = CHECKPOINT + (ADAPTER if training.early_stopping else 0)  # the best step's adapter
    return each * (training.checkpoints_kept + 1) * shape.lora_parameters(training.lora)


def of_adapters(shape: Shape, training: TrainSpec, count: int) -> int:
    """Bytes of `count` adapters."""
    return ADAPTER * count * shape.lora_parameters(training.lora)


def of_training(shape: Shape, spec: RunSpec) -> int:
    """Approximate bytes that a run writes from its first training on."""
    written = of_adapters(shape, spec.training, 2 * len(spec.datasets)) + of_checkpoints(shape, spec.training)
    return written + of_files(shape, files(spec))


def kind_of(stage: str, parameters: Mapping[str, Any]) -> str | None:
    """Bytes of model weights that a stage writes; None for other stages."""
    if stage in ("convert", "convert_outside", "quantize", "quantize_weighted"):
        return str(parameters.get("quantization") or parameters["outtype"])
    return "f16" if parameters.get("package") == "merged" else None


def check(spec: RunSpec, root: Path, *, stage: str, kind: str | None) -> None:
    """Raise DiskFull if the disk has too little space for a training and all that follows, or for this file."""
    shape = known_shape(spec.model) if stage == "train" or kind in BITS else None
    if shape is None:
        return
    needed = of_training(shape, spec) if stage == "train" else of_files(shape, [kind] if kind else [])
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DiskFull(
            f"{stage} and later stages write about {needed / GIB:.2f} GiB, but {root} has {free / GIB:.2f} GiB free",
            hint="free some disk space, choose a smaller quantization, or another BACKPROPAGATE_STORE",
        )
