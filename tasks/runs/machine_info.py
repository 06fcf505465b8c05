"""Package versions and GPUs of this machine."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from backprop_core.models.devices import visible_gpus

PACKAGES = ("backpropagate-pipeline", "prefect", "mlflow", "torch", "transformers", "peft", "gguf", "llama-cpp-python")


def facts() -> dict[str, Any]:
    """Versions that can affect results (None: not installed), and the GPUs that CUDA would use."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: installed(name) for name in PACKAGES},
        "gpus": visible_gpus(),
    }


def installed(package: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
