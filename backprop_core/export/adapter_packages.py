"""Writes export packages other than GGUF models: merged checkpoint, LoRA adapter, GGUF LoRA adapter."""

import shutil
from pathlib import Path

from backprop_core.models.base import TOKENIZER_FILES
from backprop_core.models.peft_files import BASE, FILES, name_base, tokenizer_home
from backprop_core.schema.refs import BaseRef
from backprop_core.schema.specs import Package
from backprop_core.store.cache_keys import canonical

GGUF_LORA = "adapter.gguf"


def write_package(
    base: BaseRef, directory: Path, adapter: Path, output: Path, *, package: Package, named: bool
) -> None:
    """Write a package of `base` (whose files are in `directory`) and the adapter into the directory `output`.

    merged: the base with the adapter fused into it, for transformers. lora: the adapter in PEFT's layout, with its own
    or the base's tokenizer; if `named`, its config names the base by hub id; base.json has the base's digest.
    gguf-lora: the adapter for llama.cpp, to use with a GGUF file of the base. Raises AdapterMismatch, and for gguf-lora
    ArchitectureUnsupported or TokenizerUnsupported.
    """
    match package:
        case "merged":
            from backprop_core.export.merged_checkpoint import fuse

            fuse(directory, adapter, output)
        case "lora":
            copy(adapter, FILES, output)
            copy(tokenizer_home(directory, adapter), TOKENIZER_FILES, output)
            (output / BASE).write_text(canonical({"digest": base.digest}) + "\n", encoding="utf-8", newline="\n")
            if named:
                name_base(output, base.name, base.revision)
        case "gguf-lora":
            from backprop_core.export.gguf.lora import convert_lora

            convert_lora(directory, adapter, output / GGUF_LORA)


def copy(source: Path, names: tuple[str, ...], target: Path) -> None:
    """Copy those of the files that exist."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
