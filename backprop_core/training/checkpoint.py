"""Saves and loads training checkpoints: `step-NNNNNN/` under the stage's key, as safetensors and JSON."""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from backprop_core.errors import CheckpointInvalid, DiskFull, system_error
from backprop_core.models.adapter_tensors import Tensors
from backprop_core.store.artifacts import fsync, manifest_of
from backprop_core.store.cache_keys import canonical
from backprop_core.store.layout import MANIFEST

KIND, FORMAT = "checkpoint", 2
STATE = "state.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step: plain values, and groups of tensors by name (adapter, optimizer, rng)."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensors]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for group in self.tensors.values() for tensor in group.values())


def save(checkpoint: Checkpoint, folder: Path, *, keep: int) -> None:
    """Save atomically (write to a temporary directory, fsync, rename), then delete all but the newest `keep`.

    Raises DiskFull, if possible before writing; older checkpoints stay intact.
    """
    target = place(folder, checkpoint.step)
    beside = target.with_suffix(".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < checkpoint.nbytes:
            raise no_space(folder)
        write_checkpoint(checkpoint, beside)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        fsync(folder)
        fsync(folder.parent)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(system_error(error), DiskFull):
            raise no_space(folder) from error
        raise
    for path in [*finished(folder)[:-keep], *folder.glob("*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def place(folder: Path, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return folder / f"step-{step:06d}"


def no_space(folder: Path) -> DiskFull:
    return DiskFull(f"no space left for a checkpoint in {folder}", hint="free some disk space and resume")


def write_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the checkpoint's files and their manifest, and fsync them."""
    directory.mkdir(parents=True)
    for name, tensors in checkpoint.tensors.items():
        write_synced(directory / f"{name}.safetensors", safetensors.torch.save(tensors))
    write_synced(directory / STATE, canonical(checkpoint.state).encode())
    write_synced(directory / MANIFEST, canonical(manifest_of(directory, KIND, FORMAT)).encode())
    fsync(directory)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def finished(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def newest(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint, or None. Sets damaged ones aside and logs a warning."""
    for path in reversed(finished(folder)):
        if verifies(path):
            return read_checkpoint(path)
        log.warning("%s is damaged or of another format; trying an older checkpoint", path)
        aside = path.with_name(f"damaged-{path.name}")  # otherwise it would count as a kept one
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def verifies(path: Path) -> bool:
    """Whether every file matches the manifest."""
    try:
        return bool(json.loads((path / MANIFEST).read_bytes()) == manifest_of(path, KIND, FORMAT))
    except (OSError, ValueError):
        return False


def read_checkpoint(path: Path) -> Checkpoint:
    """Load an intact checkpoint."""
    tensors = {file.stem: safetensors.torch.load_file(file) for file in path.glob("*.safetensors")}
    return Checkpoint(int(path.name.removeprefix("step-")), json.loads((path / STATE).read_bytes()), tensors)


def check_exact(old: dict[str, Any], new: dict[str, Any], *, inexact: bool) -> list[str]:
    """The fields in which two fingerprints differ, with both values. Raises CheckpointInvalid unless `inexact`."""
    names = sorted(old.keys() | new.keys())
    different = [f"{name} was {old.get(name)}, is {new.get(name)}" for name in names if old.get(name) != new.get(name)]
    if different and not inexact:
        raise CheckpointInvalid(
            f"the checkpoint cannot be resumed bit-exactly: {'; '.join(different)}",
            hint="restore the old environment, resume with --inexact-resume, or start over with --fresh",
        )
    return different
