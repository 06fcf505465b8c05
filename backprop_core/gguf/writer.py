"""The GGUF file: header and tensor infos first, then one tensor after the other."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as GGMLType
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from backprop_core.errors import ArchitectureUnsupported, GGUFExportFailed
from backprop_core.gguf.architecture import (
    add_hyperparameters,
    architecture_of,
    heads,
    rope_tensors,
)
from backprop_core.gguf.fuse import Fused
from backprop_core.gguf.tokenizer import HINT
from backprop_core.gguf.vocabulary import add_vocabulary
from backprop_core.progress import OnProgress

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
DTYPES = {GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}
Array = npt.NDArray[Any]
T = TypeVar("T", Tensor, Array)
AHEAD = 4  # pieces that may wait for the disk


@dataclass(frozen=True)
class Entry:
    """One tensor of the file. `heads` is how many rotary heads its rows are regrouped for, 0 for none."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: GGMLType
    heads: int

    @property
    def bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // int(block) * int(size)


def write(base: Path, adapter: Path | None, path: Path, outtype: str, on_progress: OnProgress) -> None:
    """Write the file at `path`; half of it is left there on failure."""
    config, tokenizer = AutoConfig.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    fused = Fused(base, adapter)
    entries = plan(config, fused, GGMLType[outtype.upper()])
    write_header(path, config, tokenizer, entries, FILE_TYPES[outtype])
    with path.open("ab") as file:
        write_tensors(file, config, fused, entries, on_progress)


def plan(config: Any, fused: Fused, kind: GGMLType) -> list[Entry]:
    """Every tensor of the file, in the file's order."""
    architecture = architecture_of(config).name
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    if config.tie_word_embeddings:
        fused.refuse_head()
    entries = []
    for source in fused.names():
        if source.endswith(".rotary_emb.inv_freq") or (source == "lm_head.weight" and config.tie_word_embeddings):
            continue
        name = names.get_name(source, (".weight", ".bias"))
        if name is None:
            raise ArchitectureUnsupported(f"llama.cpp's {architecture} has no tensor for {source}", hint=HINT)
        shape = fused.shapes[source]
        entries.append(Entry(name, source, shape, stored_type(shape, kind), rotary_heads(config, source)))
    return entries


def stored_type(shape: tuple[int, ...], kind: GGMLType) -> GGMLType:
    """Vectors are float32; a matrix whose rows do not fill blocks of 32 is F16 instead of Q8_0."""
    if len(shape) == 1:
        return GGMLType.F32
    return GGMLType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind


def rotary_heads(config: Any, source: str) -> int:
    """Heads of a q or k projection where llama.cpp rotates neighbouring rows; 0 for all others."""
    if not architecture_of(config).paired_rotary:
        return 0
    count, kv_count, _ = heads(config)
    return {"q_proj": count, "k_proj": kv_count}.get(source.split(".")[-2], 0)


def pair_rows(tensor: T, heads: int) -> T:
    """Rows of each head from (first half, second half) to neighbours (first, second), (first, second), …

    transformers rotates row j of a head with row j + d/2, llama.cpp's `llama` row 2j with row 2j + 1.
    """
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def write_header(path: Path, config: Any, tokenizer: Any, entries: list[Entry], file_type: int) -> None:
    """Metadata and tensor infos. Nothing in it says where, when, or from what name the file was made."""
    writer = gguf.GGUFWriter(path, architecture_of(config).name)
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


def write_tensors(file: BinaryIO, config: Any, fused: Fused, entries: list[Entry], on_progress: OnProgress) -> None:
    """Tensor data in the order of the infos, each aligned. The disk writes while the next rows are fused."""
    done, total = 0, sum(entry.bytes for entry in entries)
    step, due = total // 100, 0  # what is reported: each hundredth
    file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
    with ThreadPoolExecutor(1) as disk:
        pending: deque[Future[int]] = deque()
        for piece in aligned(tensors(config, fused, entries)):
            pending.append(disk.submit(file.write, piece.data))
            if len(pending) > AHEAD:
                done += pending.popleft().result()
            if due <= done < total:
                on_progress(done, total)
                due = done + step
        for future in pending:
            future.result()
    on_progress(total, total)


def aligned(pieces_of_tensors: Iterable[Iterable[Array]]) -> Iterator[Array]:
    """The pieces of one tensor after another, with zeros after each up to where the next may begin."""
    for pieces in pieces_of_tensors:
        length = 0
        for piece in pieces:
            length += piece.nbytes
            yield piece
        yield np.zeros(-length % gguf.GGUF_DEFAULT_ALIGNMENT, np.uint8)


def tensors(config: Any, fused: Fused, entries: list[Entry]) -> Iterator[Iterable[Array]]:
    """The tensors of the file, each in pieces."""
    yield from ([factors] for factors in rope_tensors(config).values())
    for entry in entries:
        pieces = encoded(config, fused, entry)
        yield [pair_rows(np.concatenate(list(pieces)), entry.heads)] if entry.heads else pieces


def encoded(config: Any, fused: Fused, entry: Entry) -> Iterator[Array]:
    """A tensor in the file's type, some rows at a time."""
    offset = architecture_of(config).norm_offset if entry.source.endswith("norm.weight") else 0
    for block in fused.blocks(entry.source):
        yield encode(block.float() + offset if offset else block, entry)


def encode(block: Tensor, entry: Entry) -> Array:
    """Rows of a tensor in the file's type, as bytes: (rows, bytes of a row).

    Raises GGUFExportFailed for NaN, infinity, or a value beyond the type's range.
    """
    stored = block.to(DTYPES.get(entry.type, torch.float32)).contiguous()
    if not finite(stored):
        hint = "export bf16 instead" if finite(block) else "the weights hold NaN or infinity: train again"
        raise GGUFExportFailed(f"{entry.source} has a value that {entry.type.name} cannot hold", hint=hint)
    if entry.type == GGMLType.Q8_0:
        quantized: Array = gguf.quants.quantize(stored.numpy(), entry.type)
        return quantized
    return stored.view(torch.uint8).numpy().reshape(len(block), -1)


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; both show in its extremes."""
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)
