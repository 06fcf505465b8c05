"""Handing out what was exported."""

import shutil
import uuid
from pathlib import Path

from backprop_core import ollama
from backprop_core.refs import RunResult
from backprop_core.specs import ExportSpec
from backprop_core.store import write_atomic
from tasks.serving import served_as


def hand_out(result: RunResult, output: Path) -> list[Path]:
    """Copy a run's GGUF files to a directory, under names for people; each appears whole or not at all.

    Beside each a Modelfile, for those who run `ollama create` by hand.
    """
    export = ExportSpec.model_validate(result.spec["export"])
    output.mkdir(parents=True, exist_ok=True)
    targets = [output / f"{result.line}-{file.quantization}.gguf" for file in result.gguf]
    for file, target in zip(result.gguf, targets, strict=True):
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            shutil.copyfile(file.path, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        write_atomic(target.with_suffix(".Modelfile"), ollama.modelfile(target.name, served_as(target, export)))
    return targets
