"""Handing out what was exported."""

import shutil
import uuid
from pathlib import Path

from backprop_core import ollama
from backprop_core.refs import RunResult
from backprop_core.specs import ExportSpec
from backprop_core.store import MANIFEST, write_atomic
from tasks.serving import served_as


def hand_out(result: RunResult, output: Path) -> list[Path]:
    """Copy a run's files to a directory, under names for people; each appears whole or not at all.

    Beside each GGUF file a Modelfile, for those who run `ollama create` by hand.
    """
    export = ExportSpec.model_validate(result.spec["export"])
    output.mkdir(parents=True, exist_ok=True)
    handed = []
    for file in result.gguf:
        handed.append(copied(Path(file.path), output / f"{result.line}-{file.quantization}.gguf"))
        served = served_as(handed[-1], export)
        write_atomic(handed[-1].with_suffix(".Modelfile"), ollama.modelfile(handed[-1].name, served))
    for package in result.packages:
        handed.append(copied(Path(package.path), output / f"{result.line}-{package.package}"))
    return handed


def copied(source: Path, target: Path) -> Path:
    """A copy of a file, or of an artifact's directory without the store's own file."""
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        if source.is_dir():
            shutil.copytree(source, beside, ignore=shutil.ignore_patterns(MANIFEST), copy_function=shutil.copyfile)
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.copyfile(source, beside)
        beside.replace(target)
    finally:
        remove(beside)
    return target


def remove(path: Path) -> None:
    """What is left of a copy that failed, if anything."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
