"""Measures the FLOP/s of this machine's CPU or GPU."""

import subprocess
import sys

from pydantic import Field

from backprop_core.models.devices import visible_gpus
from backprop_core.runtime.settings import settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of
from backprop_core.training.time_estimate import cpu_speed

SECONDS = 120  # time limit of a GPU measurement, including the import of torch
PRODUCT = """
import time, torch
matrix = torch.ones(8192, 8192, dtype=torch.bfloat16, device="cuda")
best = float("inf")
for _ in range(6):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    matrix @ matrix
    torch.cuda.synchronize()
    best = min(best, time.perf_counter() - begin)
print(2 * 8192**3 / best)
"""


class Speed(Record):
    """A stored measurement of a matrix product."""

    flops: float = Field(gt=0, description="FLOP per second.")


def speed_of(device: str, store: Store) -> float | None:
    """FLOP/s of a matrix product: float32 on the CPU, bf16 on the GPU; None if it cannot be measured.

    A GPU is measured in a separate process, because this one never loads torch, and the result is stored.
    """
    if device == "cpu":
        return cpu_speed()
    note = store.layout.note("speed", digest_of(visible_gpus()[0]))
    if not note.is_file():
        command = [settings().worker_python or sys.executable, "-c", PRODUCT]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):  # another job may use all of its memory
            return None
        write_atomic(note, Speed(flops=float(done.stdout)).model_dump_json())
    return Speed.model_validate_json(note.read_bytes()).flops
