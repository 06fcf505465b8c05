"""Converts a transformers model, with an adapter fused in, to a GGUF file. Importing this does not load torch."""

import uuid
from pathlib import Path
from typing import Literal

from backprop_core.export.gguf.support import check_supported
from backprop_core.runtime.progress import OnProgress

__all__ = ["check_supported", "convert"]


def convert(
    base: Path,
    adapter: Path | None,
    output: Path,
    *,
    outtype: Literal["f32", "f16", "bf16", "q8_0"],
    on_progress: OnProgress | None = None,
) -> None:
    """Write the model in `base`, with the LoRA in `adapter` fused into it, as one GGUF file.

    Matrices get `outtype`, vectors stay float32. One tensor is in memory at a time. `on_progress` gets (written, total)
    bytes of tensor data. The same input gives the same bytes; on failure nothing is left at `output`.
    Raises ArchitectureUnsupported, TokenizerUnsupported, AdapterMismatch, ChatTemplateMissing, ChatTemplateUnusable
    or GGUFExportFailed.
    """
    from backprop_core.export.gguf.writer import write_gguf

    check_supported(base, adapter)
    beside = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        write_gguf(base, adapter, beside, outtype, on_progress or (lambda done, total: None))
        beside.replace(output)
    finally:
        beside.unlink(missing_ok=True)
