"""Copies exported files to the user's directory, without overwriting files of anything but this model."""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from backprop_core.errors import OutputExists
from backprop_core.lines.versions import Lines
from backprop_core.models import peft_files
from backprop_core.publishing import ollama
from backprop_core.schema.refs import GGUFRecord, PackageRecord
from backprop_core.schema.specs import ExportSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import canonical
from backprop_core.store.layout import MANIFEST
from tasks.runs.prepared_run import Prepared
from tasks.stages.ollama import served_as

NOTE = ".backprop-exports.json"  # in the directory: exported files by name, with their model and state


class Output(NamedTuple):
    """Where to write exported files."""

    directory: Path
    name: str  # prefix of file names
    owner: str  # the model they belong to
    force: bool  # whether to overwrite existing files
    base: str | None = None  # the base's directory, if it has no hub id

    def check(self, export: ExportSpec) -> None:
        """Raise OutputExists for an existing file that no export of this model wrote, or that has changed since."""
        known = read_note(self.directory)
        for path in self.paths(export):
            ours = known.get(path.name) == {"of": self.owner, "state": state_of(path)}
            if path.exists() and not ours and not self.force:
                raise OutputExists(
                    f"{path} exists, and is not an earlier export of {self.owner}",
                    hint="choose another name with --name NAME, or overwrite it with --force",
                )

    def paths(self, export: ExportSpec) -> list[Path]:
        """The files that the export writes."""
        files = [self.file(f"{quantization}.gguf") for quantization in export.quantizations]
        beside = [path.with_suffix(".Modelfile") for path in files]
        return files + beside + [self.file(package) for package in export.packages]

    def file(self, ending: str) -> Path:
        return self.directory / f"{self.name}-{ending}"


def owner_of(ref: str, prepared: Prepared, store: Store) -> str:
    """The model behind a reference. Exports with the same owner may overwrite each other's files."""
    line = ref.partition("@")[0]
    if line in Lines(store).names():
        return f"line {line}"
    if prepared.of:
        return f"run {prepared.of}"
    assert prepared.adapter, "an export has an adapter"
    return f"adapter {prepared.adapter.digest}"


def hand_out(
    gguf: Sequence[GGUFRecord], packages: Sequence[PackageRecord], export: ExportSpec, output: Output
) -> list[Path]:
    """Copy files to a directory under readable names; each appears whole or not at all.

    Writes a Modelfile for `ollama create` beside each GGUF file. Raises OutputExists.
    """
    output.check(export)
    output.directory.mkdir(parents=True, exist_ok=True)
    written = []
    for file in gguf:
        target = copied(Path(file.path), output.file(f"{file.quantization}.gguf"))
        beside = target.with_suffix(".Modelfile")
        write_atomic(beside, ollama.modelfile(target.name, served_as(target, export)))
        written += [target, beside]
    for package in packages:
        written.append(copied(Path(package.path), output.file(package.package)))
        if package.package == "lora" and output.base:
            peft_files.name_base(written[-1], output.base, None)  # a copy may name a local path
    note = read_note(output.directory)
    note |= {path.name: {"of": output.owner, "state": state_of(path)} for path in written}
    write_atomic(output.directory / NOTE, canonical(note))
    return written


def read_note(directory: Path) -> dict[str, object]:
    """The record of files that exports wrote to a directory; empty if missing or damaged."""
    try:
        known: dict[str, object] = dict(json.loads((directory / NOTE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return known


def state_of(path: Path) -> list[list[object]]:
    """Name, size and time of a file, or of each file in a directory."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.exists()]
    return [[file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def copied(source: Path, target: Path) -> Path:
    """Copy a file, or an artifact's directory without its manifest."""
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
    """Remove the remains of a failed copy."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
