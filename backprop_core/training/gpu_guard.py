"""The GPU guard: readings as metrics, a pause while the GPU is too hot, a coded stop where it stays so."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from backprop_core.errors import GPUTooHot

if TYPE_CHECKING:
    import torch

PAUSE_AT, GO_ON_AT = 83.0, 75.0  # °C
PATIENCE = 300.0  # seconds of one pause
INTERVAL = 5.0  # seconds between two looks
TEMPERATURE, MEMORY, POWER, ECC = "gpu_temperature", "gpu_memory_gib", "gpu_power", "gpu_ecc_errors"
Reading = dict[str, float]  # °C, GiB in use, W, uncorrected errors since the driver was loaded; absent: not known
Probe = Callable[[], Reading]
log = logging.getLogger(__name__)


class Blind(Exception):
    """The GPU cannot be looked at; the message says why."""


def must_rest(resting: bool, temperature: float | None) -> bool:
    """Whether to pause: from 83 °C until it is down at 75 °C. A temperature that is not known pauses nothing."""
    if temperature is None:
        return False
    return temperature > GO_ON_AT if resting else temperature >= PAUSE_AT


class Guard:
    """Looks at one GPU between the steps of a training.

    A probe that raises Blind, or knows no temperature, is said once in the log, and the training goes on.
    """

    def __init__(
        self, probe: Probe, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._probe, self._clock, self._sleep = probe, clock, sleep
        self._due = -math.inf
        self._hot = self._said_blind = False
        self._errors = math.inf

    def readings(self) -> Reading:
        """What is known of the GPU now, as metrics; empty when the last look was less than five seconds ago."""
        if self._clock() < self._due:
            return {}
        return self._look()

    def cool_down(self, should_stop: Callable[[], bool]) -> None:
        """Wait while the last look says that the GPU is too hot, but no longer than until `should_stop()`.

        Raises GPUTooHot after five minutes; the caller saves a checkpoint first.
        """
        began = self._clock()
        if self._hot:
            log.warning("the GPU is at %.0f °C or more: pausing until it is at %.0f °C", PAUSE_AT, GO_ON_AT)
        while self._hot and not should_stop():
            if self._clock() - began >= PATIENCE:
                raise GPUTooHot(
                    f"the GPU did not cool down to {GO_ON_AT:.0f} °C in {PATIENCE:.0f} s",
                    hint="look after its cooling, or lower its power limit with `nvidia-smi -pl`; then resume the run",
                )
            self._sleep(INTERVAL)
            self._look()

    def _look(self) -> Reading:
        self._due = self._clock() + INTERVAL
        reading, why = Reading(), "the driver tells no temperature"
        try:
            reading = self._probe()
        except Blind as error:
            why = str(error)
        if TEMPERATURE not in reading and not self._said_blind:
            log.warning("training goes on without a guard of the GPU: %s", why)
            self._said_blind = True
        self._hot = must_rest(self._hot, reading.get(TEMPERATURE))
        self._note_errors(reading)
        return reading

    def _note_errors(self, reading: Reading) -> None:
        """Say when the GPU's memory lost data since the last look: what was computed may be wrong."""
        if (errors := reading.get(ECC, self._errors)) > self._errors:
            log.warning("the GPU reports %d uncorrected memory errors: do not trust this run", errors)
        self._errors = errors


def of(device: "torch.device") -> Guard | None:
    """The guard of a training on this device; a CPU has none."""
    import torch

    if device.type != "cuda":
        return None
    return Guard(nvml(f"GPU-{torch.cuda.get_device_properties(device).uuid}"))


def nvml(uuid: str) -> Probe:
    """A probe of the GPU with this UUID: NVML's own numbering ignores CUDA_VISIBLE_DEVICES."""

    @cache
    def handle() -> Any:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def probe() -> Reading:
        try:
            import pynvml
        except ImportError as error:  # the worker may run under another interpreter
            raise Blind("its Python lacks nvidia-ml-py") from error
        try:
            return read_sensors(handle())
        except pynvml.NVMLError as error:
            raise Blind(str(error)) from error

    return probe


def read_sensors(gpu: Any) -> Reading:
    """All that the driver tells of a GPU; what it does not support or not allow is left out."""
    import pynvml

    volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    questions: dict[str, Callable[[], float]] = {
        TEMPERATURE: lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        MEMORY: lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30,
        POWER: lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        ECC: lambda: pynvml.nvmlDeviceGetTotalEccErrors(gpu, *volatile),
    }
    unknown = pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_FunctionNotFound
    reading = Reading()
    for name, ask in questions.items():
        with suppress(*unknown):
            reading[name] = float(ask())
    return reading
