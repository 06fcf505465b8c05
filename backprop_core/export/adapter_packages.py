"""What was trained, in the forms that other programs load beside GGUF: each a directory of its own."""

import shutil
from pathlib import Path

from backprop_core.models.base import TOKENIZER_FILES
from backprop_core.models.peft_files import BASE, FILES, name_base, tokenizer_home
from backprop_core.schema.refs import BaseRef
from backprop_core.schema.specs import Package
from backprop_core.store.cache_keys import canonical

GGUF_LORA = "adapter.gguf"


def write(base: BaseRef, directory: Path, adapter: Path, output: Path, *, package: Package, named: bool) -> None:
    """Write `package`, of `base` in `directory` and the adapter, into the directory `output`.

    merged: the base with the adapter fused into it, for transformers. lora: the adapter in PEFT's layout, with the
    base's tokenizer or the one that came with it; its config names the base by hub id if it is `named`, and
    base.json has its digest. gguf-lora: the adapter for llama.cpp, on a GGUF file of the bare
    base. Raises AdapterMismatch, and for gguf-lora ArchitectureUnsupported or TokenizerUnsupported.
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
    """Those of the files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
