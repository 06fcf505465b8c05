"""Checkpoints of an interrupted run: `step-NNNNNN/` under its stage's key. Tensors in safetensors, the rest JSON."""

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
    """A run at the end of a step: plain values, and groups of tensors by name (adapter, optimizer, rng)."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensors]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for group in self.tensors.values() for tensor in group.values())


def save(checkpoint: Checkpoint, folder: Path, *, keep: int) -> None:
    """Write beside, force to disk, rename: what has the final name is whole. The newest `keep` stay.

    Raises DiskFull, before a byte is written if it can be known; then the older ones are untouched.
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
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}"


def no_space(folder: Path) -> DiskFull:
    return DiskFull(f"no space left for a checkpoint in {folder}", hint="free some space and go on")


def write_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """The checkpoint's files and their manifest, forced to disk."""
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
    """The newest checkpoint that verifies; a damaged one is named and set aside. None to start afresh."""
    for path in reversed(finished(folder)):
        if verifies(path):
            return read_checkpoint(path)
        log.warning("%s is damaged or of another format; trying an older checkpoint", path)
        aside = path.with_name(f"damaged-{path.name}")  # else it would count as one of those that are kept
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def verifies(path: Path) -> bool:
    """Whether every file is what the manifest says."""
    try:
        return bool(json.loads((path / MANIFEST).read_bytes()) == manifest_of(path, KIND, FORMAT))
    except (OSError, ValueError):
        return False


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that verifies."""
    tensors = {file.stem: safetensors.torch.load_file(file) for file in path.glob("*.safetensors")}
    return Checkpoint(int(path.name.removeprefix("step-")), json.loads((path / STATE).read_bytes()), tensors)


def check_exact(old: dict[str, Any], new: dict[str, Any], *, inexact: bool) -> list[str]:
    """The fields in which two fingerprints differ, with both values; raises CheckpointInvalid for any but `inexact`."""
    names = sorted(old.keys() | new.keys())
    different = [f"{name} was {old.get(name)}, is {new.get(name)}" for name in names if old.get(name) != new.get(name)]
    if different and not inexact:
        raise CheckpointInvalid(
            f"the checkpoint cannot be continued to the same bits: {'; '.join(different)}",
            hint="restore what differs, go on inexactly with --inexact-resume, or begin again with --fresh",
        )
    return different
