"""Converts a LoRA adapter to a GGUF adapter file for llama.cpp and Ollama. [llama.cpp, convert_lora_to_gguf]"""

import uuid
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor
from transformers import AutoConfig

from backprop_core.errors import ArchitectureUnsupported
from backprop_core.export.gguf.architecture import architecture_of
from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.export.gguf.support import check_supported
from backprop_core.export.gguf.tensor_data import pair_rows
from backprop_core.export.gguf.tokenizer import LEAVE
from backprop_core.export.gguf.writer import rotary_heads


def convert_lora(base: Path, adapter: Path, output: Path) -> None:
    """Write A (r, in) and B (out, r) of every linear layer in float32, under llama.cpp's names.

    llama.cpp scales B·A by alpha/r, so an rsLoRA adapter is written with alpha·√r. Same input, same bytes; on failure
    nothing is left at `output`. Raises ArchitectureUnsupported, TokenizerUnsupported, or AdapterMismatch if it is not
    plain LoRA: a DoRA adapter has to be fused.
    """
    check_supported(base)
    config: Any = AutoConfig.from_pretrained(base)
    fused = Fused(base, adapter)
    fused.refuse_magnitudes()
    beside = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        write_gguf_lora(beside, config, fused)
        beside.replace(output)
    finally:
        beside.unlink(missing_ok=True)


def write_gguf_lora(path: Path, config: Any, fused: Fused) -> None:
    """Write the whole file; an adapter fits into memory."""
    architecture = architecture_of(config).name
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, fused.scaling * rank_of(fused))
    for source in sorted(fused.lora):
        A, B, _ = fused.lora[source]
        name = names.get_name(source, (".weight",))
        if name is None:
            raise ArchitectureUnsupported(f"llama.cpp's {architecture} has no tensor for {source}", hint=LEAVE)
        heads = rotary_heads(config, source)
        writer.add_tensor(f"{name}.lora_a", as_array(A))
        writer.add_tensor(f"{name}.lora_b", as_array(pair_rows(B, heads) if heads else B))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rank_of(fused: Fused) -> int:
    return next(iter(fused.lora.values())).A.shape[0]


def as_array(tensor: Tensor) -> Any:
    return tensor.float().contiguous().numpy()
