"""Which device a run uses, asked of the driver: the parent process never imports torch."""

import os
from typing import Literal

from backprop_core.errors import GPUNotAvailable


def resolve(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """`auto` is the GPU if there is one. Raises GPUNotAvailable when one was asked for and there is none."""
    if device == "cpu":
        return "cpu"
    if visible_gpus():
        return "cuda"
    if device == "cuda":
        raise GPUNotAvailable("no NVIDIA GPU can be seen", hint="check `nvidia-smi`, or set training.device=cpu")
    return "cpu"


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that CUDA would use, in its order; NVML itself ignores CUDA_VISIBLE_DEVICES."""
    present = gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [uuid for name in names for uuid in present if name_means(name, uuid, present)]


def name_means(name: str, uuid: str, present: list[str]) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES, an index or the start of a UUID, means this GPU."""
    return present[int(name)] == uuid if name.isdigit() and int(name) < len(present) else uuid.startswith(name)


def gpus() -> list[str]:
    """UUIDs of all GPUs, by PCI order; empty without a driver."""
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


def free_memory() -> int | None:
    """Free bytes of the GPU that a run would use; None without one."""
    import pynvml

    visible = visible_gpus()
    if not visible:
        return None
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(visible[0])).free)
    finally:
        pynvml.nvmlShutdown()
