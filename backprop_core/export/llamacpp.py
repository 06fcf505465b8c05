"""Imports llama-cpp-python when first needed, silences its log, and keeps its error lines for messages."""

import functools
from collections import deque
from typing import Any

from backprop_core.errors import ExtraMissing

ERROR = 4  # ggml_log_level
_errors: deque[str] = deque(maxlen=3)  # the library has one log callback a process, and calls it without a context


def library() -> Any:
    """The module `llama_cpp` (untyped: its functions are created at import). Raises ExtraMissing."""
    _errors.clear()
    return _load()[0]


@functools.cache
def _load() -> tuple[Any, Any]:
    """The module, and the log callback, which must stay alive: the library only keeps a pointer to it."""
    try:
        import llama_cpp
    except ImportError as error:
        raise ExtraMissing(
            "llama-cpp-python is not installed; it is needed for K-quants and for checking GGUF files",
            hint="pip install 'backpropagate-pipeline[export]'; f32, f16, bf16 and q8_0 files work without it",
        ) from error
    callback = llama_cpp.llama_log_callback(_keep_errors)
    llama_cpp.llama_log_set(callback, None)
    return llama_cpp, callback


def _keep_errors(level: int, text: bytes, _: object) -> None:
    if level == ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


def last_error() -> str:
    """The last error lines of llama.cpp since `library()` was called, as one line."""
    return " ".join(_errors) or "llama.cpp gave no reason"
