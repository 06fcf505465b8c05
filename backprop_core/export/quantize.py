"""Quantizes GGUF files with llama.cpp (q4_k_m and other K-quants), optionally with an importance matrix."""

import ctypes
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from backprop_core.errors import GGUFExportFailed, QuantizationUnknown
from backprop_core.export.gguf_types import tensor_types
from backprop_core.export.llamacpp import last_error, library

FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q5_0": "MOSTLY_Q5_0",
    "q4_k_m": "MOSTLY_Q4_K_M",
    "q4_0": "MOSTLY_Q4_0",
    "q3_k_m": "MOSTLY_Q3_K_M",
    "q2_k": "MOSTLY_Q2_K",
}


def quantize(
    source: Path, output: Path, quantization: str, *, threads: int, importance: Path | None = None
) -> dict[str, int]:
    """Quantize the f32, f16 or bf16 file `source` to `output`; returns the number of tensors of each type in it.

    `importance` is the file of an importance matrix. llama.cpp uses a larger type for matrices whose rows are not a
    multiple of 256, which the counts show. On failure nothing is left at `output`. Raises QuantizationUnknown,
    ExtraMissing or GGUFExportFailed.
    """
    if quantization not in FILE_TYPES:
        raise QuantizationUnknown(
            f"unknown quantization {quantization!r}", hint=f"choose one of {', '.join(FILE_TYPES)}"
        )
    llama_cpp = library()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{FILE_TYPES[quantization]}")
    parameters.nthread = threads
    columns = load_file(importance) if importance else {}
    parameters.imatrix = imatrix(llama_cpp, columns) if columns else None
    beside = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(beside), parameters) != 0:
            raise GGUFExportFailed(
                f"cannot quantize {source} to {quantization}: {last_error()}",
                hint="check that the file is an f32, f16 or bf16 GGUF and that the disk has free space",
            )
        counts = tensor_types(beside)
        beside.replace(output)
        return counts
    finally:
        beside.unlink(missing_ok=True)


def imatrix(llama_cpp: Any, columns: Mapping[str, Any]) -> Any:
    """`columns`, float32 arrays by tensor, as llama.cpp's null-terminated list, which points into the arrays."""
    entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    entries = [entry(name.encode(), row.ctypes.data_as(pointer), row.size) for name, row in columns.items()]
    return (entry * (len(entries) + 1))(*entries)
