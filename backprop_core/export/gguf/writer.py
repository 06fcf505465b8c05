"""Writes a GGUF model file: metadata and tensor infos, then the tensor data."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from transformers import AutoConfig, AutoTokenizer

from backprop_core.errors import ArchitectureUnsupported
from backprop_core.export.gguf.architecture import add_hyperparameters, architecture_of, heads, rope_tensors
from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.export.gguf.stored_tensors import DTYPES
from backprop_core.export.gguf.tensor_data import Entry, aligned, write_tensors
from backprop_core.export.gguf.token_packing import Writer
from backprop_core.export.gguf.tokenizer import LEAVE
from backprop_core.export.gguf.vocabulary import add_vocabulary
from backprop_core.models.peft_files import tokenizer_home
from backprop_core.runtime.progress import OnProgress

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def write_gguf(base: Path, adapter: Path | None, path: Path, outtype: str, on_progress: OnProgress) -> None:
    """Write the file at `path`; on failure, a partial file remains."""
    config: Any = AutoConfig.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_home(base, adapter), config=config)
    fused = Fused(base, adapter)
    entries = plan(config, fused, GGMLType[outtype.upper()])
    write_header(path, config, tokenizer, entries, FILE_TYPES[outtype])
    with path.open("ab") as file:
        for factors in rope_tensors(config).values():
            file.write(bytes(aligned(file.tell()) - file.tell()))
            file.write(factors.data)
    write_tensors(path, aligned(path.stat().st_size), fused, entries, on_progress)


def plan(config: Any, fused: Fused, kind: GGMLType) -> list[Entry]:
    """All tensors of the file except those of the rotary embedding, in the file's order."""
    architecture = architecture_of(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name.upper()], config.num_hidden_layers)
    if config.tie_word_embeddings:
        fused.refuse_head()
    entries = []
    for source in fused.names():
        if source.endswith(".rotary_emb.inv_freq") or (source == "lm_head.weight" and config.tie_word_embeddings):
            continue
        name = names.get_name(source, (".weight", ".bias"))
        if name is None:
            raise ArchitectureUnsupported(f"llama.cpp's {architecture.name} has no tensor for {source}", hint=LEAVE)
        stored = fused.stored[source]
        if stored.dtype not in DTYPES:
            raise ArchitectureUnsupported(f"no GGUF writer for {source}, stored as {stored.dtype}", hint=LEAVE)
        offset = architecture.norm_offset if source.endswith("norm.weight") else 0
        count = rotary_heads(config, source)
        head = stored.shape[0] // count if count else 0
        entries.append(Entry(name, source, stored.shape, stored_type(stored.shape, kind), offset, head))
    return entries


def stored_type(shape: tuple[int, ...], kind: GGMLType) -> GGMLType:
    """Vectors are float32; a matrix whose rows are not a multiple of the block size is F16 instead of Q8_0."""
    if len(shape) == 1:
        return GGMLType.F32
    return GGMLType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind


def rotary_heads(config: Any, source: str) -> int:
    """Heads of a q or k projection if llama.cpp rotates adjacent rows; 0 for all other tensors."""
    if not architecture_of(config).paired_rotary:
        return 0
    count, kv_count, _ = heads(config)
    return {"q_proj": count, "k_proj": kv_count}.get(source.split(".")[-2], 0)


def write_header(path: Path, config: Any, tokenizer: Any, entries: list[Entry], file_type: int) -> None:
    """Write metadata and tensor infos, without paths, dates or names, so that the file is reproducible."""
    writer = Writer(path, architecture_of(config).name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_hyperparameters(writer, config)
    add_vocabulary(writer, tokenizer, config.vocab_size)
    for name, factors in rope_tensors(config).items():
        writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, raw_dtype=entry.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
