"""Finds GPUs and chooses the device of a run through NVML, without importing torch."""

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from backprop_core.errors import GPUNotAvailable


def resolve(device: Literal["auto", "cpu", "cuda"], *, own_torch: bool = True) -> Literal["cpu", "cuda"]:
    """The device to use; `auto` prefers a GPU. Raises GPUNotAvailable for `cuda` without a usable GPU."""
    missing = None if device == "cpu" else missing_gpu(own_torch=own_torch)
    if missing and device == "cuda":
        raise missing
    return "cpu" if missing or device == "cpu" else "cuda"


def missing_gpu(*, own_torch: bool = True) -> GPUNotAvailable | None:
    """Why no GPU is usable; None if one is. `own_torch`: the worker uses this interpreter's torch."""
    if own_torch and (gpus() or has_driver()) and (torch := torch_without_cuda()):
        return GPUNotAvailable(
            f"an NVIDIA driver is installed, but torch {torch} was built without CUDA",
            hint=f"pip install --force-reinstall 'torch=={torch.partition('+')[0]}', or set training.device=cpu",
        )
    if visible_gpus():
        return None
    return GPUNotAvailable("no NVIDIA GPU found", hint="check `nvidia-smi`, or set training.device=cpu")


def torch_without_cuda() -> str | None:
    """The version of the installed torch if it is CPU-only. Does not import torch."""
    installed = version("torch")
    _, _, build = installed.partition("+")
    plain = not build and sys.platform == "win32"  # PyPI's wheel for Windows is CPU-only
    return installed if build == "cpu" or plain else None


def has_driver() -> bool:
    """Whether an NVIDIA driver is installed, even if it does not work."""
    return Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi") is not None


def check_enough(device: Literal["cpu", "cuda"], processes: int) -> None:
    """Raise GPUNotAvailable if there are fewer GPUs than processes."""
    if device == "cuda" and (count := len(visible_gpus())) < processes:
        raise GPUNotAvailable(
            f"{processes} processes need one GPU each, but only {count} found",
            hint=f"set training.processes={count}, or check CUDA_VISIBLE_DEVICES",
        )


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that CUDA would use, in its order. NVML itself ignores CUDA_VISIBLE_DEVICES."""
    present = gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [uuid for name in names for uuid in present if name_means(name, uuid, present)]


def name_means(name: str, uuid: str, present: list[str]) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES, an index or a UUID prefix, means this GPU."""
    return present[int(name)] == uuid if name.isdigit() and int(name) < len(present) else uuid.startswith(name)


def gpus() -> list[str]:
    """UUIDs of all GPUs in PCI order; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(i))) for i in range(count)]
    finally:
        pynvml.nvmlShutdown()


class Memory(NamedTuple):
    """Memory of a GPU in bytes."""

    free: int
    total: int


def memory() -> Memory | None:
    """Memory of the GPU that a run would use; None without a GPU."""
    import pynvml

    visible = visible_gpus()
    if not visible:
        return None
    pynvml.nvmlInit()
    try:
        found = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(visible[0]))
        return Memory(int(found.free), int(found.total))
    finally:
        pynvml.nvmlShutdown()
