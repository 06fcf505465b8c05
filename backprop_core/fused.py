"""A base with an adapter fused into it, as a directory that transformers loads: merged safetensors, shard by shard."""

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from backprop_core.base import TEXT_FILES, weights
from backprop_core.errors import AdapterMismatch
from backprop_core.gguf.fuse import Fused
from backprop_core.keys import canonical
from backprop_core.progress import OnProgress

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LENGTH = 8  # bytes of the header's length
Header = dict[str, Any]


def fuse(base: Path, adapter: Path | None, output: Path, *, on_progress: OnProgress | None = None) -> None:
    """Write the model in `base`, with `adapter` fused into it, into the directory `output`: the same files and types.

    One tensor is in memory at a time; what is not changed is copied byte for byte. `on_progress` gets the files
    written and how many there are. Raises AdapterMismatch for an adapter that cannot be fused into this base.
    """
    fused, files = Fused(base, adapter), weights(base)
    for name in TEXT_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, output / name)
    for done, file in enumerate(files, 1):
        write_shard(file, fused, output / file.name)
        if on_progress:
            on_progress(done, len(files))


def write_shard(source: Path, fused: Fused, target: Path) -> None:
    """One safetensors file with the tensors, the order and the types of `source`."""
    with source.open("rb") as old, target.open("wb") as new:
        header, start = read_header(old)
        check_types(header, fused)
        text = canonical(header).encode()
        text += b" " * (-len(text) % LENGTH)
        new.write(len(text).to_bytes(LENGTH, "little") + text)
        for name, entry in in_order(header):
            if name in fused.lora:
                for block in fused.blocks(name):
                    new.write(raw(block.to(DTYPES[entry["dtype"]])))
            else:
                begin, end = entry["data_offsets"]
                old.seek(start + begin)
                new.write(old.read(end - begin))


def read_header(file: BinaryIO) -> tuple[Header, int]:
    """The header of a safetensors file, and where its data begins."""
    length = int.from_bytes(file.read(LENGTH), "little")
    return json.loads(file.read(length)), LENGTH + length


def in_order(header: Header) -> list[tuple[str, Any]]:
    """Tensors by where their bytes are."""
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    return sorted(entries, key=lambda pair: pair[1]["data_offsets"])


def check_types(header: Header, fused: Fused) -> None:
    for name, entry in in_order(header):
        if name in fused.lora and entry["dtype"] not in DTYPES:
            raise AdapterMismatch(
                f"{name} is stored as {entry['dtype']}; an adapter is not fused into that",
                hint="use the full-precision model as the base",
            )


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
