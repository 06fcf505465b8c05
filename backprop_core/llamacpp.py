"""llama.cpp as a library: imported when first needed, and silent. What it would print is kept for error messages."""

import functools
from collections import deque
from typing import Any

from backprop_core.errors import ExtraMissing

ERROR = 3  # ggml_log_level
LINES: deque[tuple[int, str]] = deque(maxlen=64)


@functools.cache
def library() -> Any:
    """The module `llama_cpp` (its functions are made at import, so it has no types); raises ExtraMissing."""
    try:
        import llama_cpp
    except ImportError as error:
        raise ExtraMissing(
            "llama-cpp-python is not installed: it makes K-quants and reads GGUF files back",
            hint="pip install 'backpropagate-pipeline[export]'; f32, f16, bf16 and q8_0 files work without it",
        ) from error
    llama_cpp.llama_log_set(_callback(llama_cpp), None)
    return llama_cpp


@functools.cache  # the library keeps only a pointer, so the callback has to live as long as the process
def _callback(llama_cpp: Any) -> Any:
    return llama_cpp.llama_log_callback(
        lambda level, text, _: LINES.append((level, text.decode("utf-8", "replace").strip()))
    )


def last_error() -> str:
    """The error lines that llama.cpp wrote since the last call, as one line."""
    lines = [text for level, text in LINES if level == ERROR and text]
    LINES.clear()
    return " ".join(lines[-3:]) or "llama.cpp gave no reason"
