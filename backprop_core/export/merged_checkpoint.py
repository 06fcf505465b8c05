"""Writes a merged checkpoint for transformers: the base with the adapter fused in, shard by shard."""

import shutil
from pathlib import Path

import torch

from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.export.gguf.stored_tensors import DTYPES
from backprop_core.models.base import TEXT_FILES, TOKENIZER_FILES, weights
from backprop_core.models.peft_files import tokenizer_home
from backprop_core.models.safetensors_header import LENGTH, in_order, read_header
from backprop_core.runtime.progress import OnProgress
from backprop_core.store.cache_keys import canonical


def fuse(base: Path, adapter: Path | None, output: Path, *, on_progress: OnProgress | None = None) -> None:
    """Write the model in `base`, with `adapter` fused into it, into the directory `output`: same files and types.

    Uses the adapter's own tokenizer if it has one. Keeps one tensor in memory at a time; unchanged tensors are copied
    byte for byte. `on_progress` gets (done, total) files. Raises AdapterMismatch if the adapter cannot be fused into
    this base.
    """
    fused, files, tokenizer = Fused(base, adapter), weights(base), tokenizer_home(base, adapter)
    for name in TEXT_FILES:
        home = tokenizer if name in TOKENIZER_FILES else base
        if (home / name).is_file():
            shutil.copyfile(home / name, output / name)
    for done, file in enumerate(files, 1):
        write_shard(file, fused, output / file.name)
        if on_progress:
            on_progress(done, len(files))


def write_shard(source: Path, fused: Fused, target: Path) -> None:
    """Write one safetensors file with the same tensors, order and types as `source`."""
    with source.open("rb") as old, target.open("wb") as new:
        header, start = read_header(old)
        text = canonical(header).encode()
        text += b" " * (-len(text) % LENGTH)
        new.write(len(text).to_bytes(LENGTH, "little") + text)
        for name, entry in in_order(header):
            if name in fused.lora:
                for rows in fused.slices(name):
                    new.write(fused.rows(name, rows, DTYPES[entry["dtype"]]).view(torch.uint8).numpy().data)
            else:
                begin, end = entry["data_offsets"]
                old.seek(start + begin)
                new.write(old.read(end - begin))
