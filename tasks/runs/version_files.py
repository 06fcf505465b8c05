"""The files of a version that can be downloaded."""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from backprop_core.errors import RunUnknown
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.publishing.release_transaction import released
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Digest
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import MANIFEST
from tasks.runs.ended_runs import ended
from tasks.runs.readable_records import of_line

MODEL = "model.gguf"
ADAPTER = {"adapter_model.safetensors": "adapter", "adapter_config.json": "its config"}


class StoredFile(Record):
    """A file of a version that can be downloaded."""

    name: str = Field(description="What it is: a quantization, `adapter` or `its config`.")
    filename: str = Field(description="Its name as a download.")
    bytes: int
    sha256: Digest


def stored_files(store: Store, line: str, number: int, version: LineVersion) -> Iterator[tuple[StoredFile, Path]]:
    """The GGUF files and the adapter of a version that are still in the store, with their paths."""
    made, known = ended(store, version.run_id), released(line, number, store)
    refs = {ref.digest: ref for ref in [*(made.gguf if made else []), *(known.gguf if known else [])]}
    for ref in refs.values():
        filename = f"{line}-v{number}-{ref.quantization}.gguf"
        yield from of_artifact(store, ref.digest, {MODEL: (ref.quantization, filename)})
    adapter = {inside: (name, f"{line}-v{number}-{inside}") for inside, name in ADAPTER.items()}
    yield from of_artifact(store, version.merged.digest, adapter)


def of_artifact(store: Store, digest: str, wanted: dict[str, tuple[str, str]]) -> Iterator[tuple[StoredFile, Path]]:
    """Files of an artifact by their names in it, each with what it is and its name as a download.

    Nothing if the artifact was removed, or its list of files is not the one that it is named after.
    """
    store.has(digest)
    directory = store.layout.artifact(digest)
    try:
        listed = files_at(directory / MANIFEST, (directory / MANIFEST).stat().st_mtime_ns, digest)
    except FileNotFoundError:
        return
    for inside, (name, filename) in wanted.items():
        if inside in listed:
            size, sha256 = listed[inside]
            yield StoredFile(name=name, filename=filename, bytes=size, sha256=sha256), directory / inside


@lru_cache(maxsize=4096)
def files_at(manifest: Path, _changed: int, digest: str) -> dict[str, tuple[int, str]]:
    """Size and sha256 of an artifact's files, by name; nothing if the list was changed."""
    text = manifest.read_bytes()
    if hashlib.sha256(text).hexdigest() != digest:
        return {}
    return {name: (size, sha256) for name, size, sha256 in json.loads(text)["files"]}


def download(line: str, number: int, filename: str, config: Settings) -> tuple[StoredFile, Path]:
    """A file of a version, by its name as a download. Raises RunUnknown."""
    store = Store(config.store_path)
    with of_line(line):
        for link, path in stored_files(store, line, number, Lines(store).version(line, number)):
            if link.filename == filename and path.is_file() and not path.is_symlink():
                return link, path
    raise RunUnknown(
        f"version {number} of line {line} has no file {filename[:100]}",
        hint="it may have been pruned: `backprop export` writes it again",
    )
