"""The GPU guard: reads temperature, memory, power and ECC errors; pauses training while the GPU is too hot."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from backprop_core.errors import GPUTooHot
from backprop_core.schema.specs import GuardSpec

if TYPE_CHECKING:
    import torch

INTERVAL = 5.0  # seconds between readings
MILLIJOULES = 3.6e6  # in a watt-hour
TEMPERATURE, MEMORY, POWER, ECC = "gpu_temperature", "gpu_memory_gib", "gpu_power", "gpu_ecc_errors"
SHARE = "gpu_memory_share"
ENERGY = "gpu_energy_wh"
# °C, GiB in use and their share of all, W, uncorrected errors since the driver was loaded, Wh since the first reading;
# absent: unknown
Reading = dict[str, float]
Probe = Callable[[], Reading]
log = logging.getLogger(__name__)


class Blind(Exception):
    """The GPU's sensors cannot be read; the message says why."""


def must_rest(resting: bool, temperature: float | None, marks: GuardSpec) -> bool:
    """Whether to pause: from `pause_at` until it is down to `continue_at`. Never if the temperature is unknown."""
    if temperature is None:
        return False
    return temperature > marks.continue_at if resting else temperature >= marks.pause_at


class Guard:
    """Watches one GPU between training steps.

    If the probe raises Blind or returns no temperature, logs one warning and lets training continue.
    """

    def __init__(
        self,
        probe: Probe,
        marks: GuardSpec = GuardSpec(),
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._probe, self._marks, self._clock, self._sleep = probe, marks, clock, sleep
        self._due = -math.inf
        self._hot = self._said_blind = False
        self._errors = math.inf
        self._before: float | None = None  # Wh at the first reading
        self._above: set[str] = set()

    def readings(self) -> Reading:
        """Current GPU readings as metrics; empty if the last ones are less than five seconds old."""
        if self._clock() < self._due:
            return {}
        return self._look()

    def cool_down(self, should_stop: Callable[[], bool]) -> None:
        """Wait while the GPU is too hot, or until `should_stop()`.

        Raises GPUTooHot after `patience` seconds; the caller then saves a checkpoint.
        """
        began, marks = self._clock(), self._marks
        if self._hot:
            log.warning(
                "the GPU has reached %g °C: pausing until it is down to %g °C", marks.pause_at, marks.continue_at
            )
        while self._hot and not should_stop():
            if self._clock() - began >= marks.patience:
                raise GPUTooHot(
                    f"the GPU did not cool down to {marks.continue_at:g} °C in {marks.patience:g} s",
                    hint="improve its cooling, or lower its power limit with `nvidia-smi -pl`; then resume the run",
                )
            self._sleep(INTERVAL)
            self._look()

    def _look(self) -> Reading:
        self._due = self._clock() + INTERVAL
        reading, why = Reading(), "the driver reports no temperature"
        try:
            reading = self._probe()
        except Blind as error:
            why = str(error)
        if TEMPERATURE not in reading and not self._said_blind:
            log.warning("training continues without the GPU guard: %s", why)
            self._said_blind = True
        self._hot = must_rest(self._hot, reading.get(TEMPERATURE), self._marks)
        self._note_errors(reading)
        if ENERGY in reading:
            self._before = reading[ENERGY] if self._before is None else self._before
            reading = reading | {ENERGY: reading[ENERGY] - self._before}
        self._note_above(SHARE, reading, self._marks.memory, "%.2f of the GPU's memory is in use, above %g")
        self._note_above(POWER, reading, self._marks.power, "the GPU draws %.0f W, above %g W")
        return reading

    def _note_above(self, name: str, reading: Reading, mark: float | None, message: str) -> None:
        """Log a warning whenever a reading rises above its mark."""
        value = reading.get(name)
        if mark is None or value is None:
            return
        if value <= mark:
            self._above.discard(name)
        elif name not in self._above:
            self._above.add(name)
            log.warning(message, value, mark)

    def _note_errors(self, reading: Reading) -> None:
        """Log a warning if new uncorrected memory errors occurred: results may be wrong."""
        if (errors := reading.get(ECC, self._errors)) > self._errors:
            log.warning("the GPU reports %d uncorrected memory errors: do not trust this run", errors)
        self._errors = errors


def of(device: "torch.device", marks: GuardSpec) -> Guard | None:
    """The guard for this device; None for a CPU."""
    import torch

    if device.type != "cuda":
        return None
    return Guard(nvml(f"GPU-{torch.cuda.get_device_properties(device).uuid}"), marks)


def nvml(uuid: str) -> Probe:
    """A probe of the GPU with this UUID, as NVML's indices ignore CUDA_VISIBLE_DEVICES."""

    @cache
    def handle() -> Any:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def probe() -> Reading:
        try:
            import pynvml
        except ImportError as error:  # the worker may run under another interpreter
            raise Blind("the worker's Python lacks nvidia-ml-py") from error
        try:
            return read_sensors(handle())
        except pynvml.NVMLError as error:
            raise Blind(str(error)) from error

    return probe


def share_in_use(memory: Any) -> float:
    return float(memory.used / memory.total)


def read_sensors(gpu: Any) -> Reading:
    """Read all sensors of a GPU that the driver supports and allows to read."""
    import pynvml

    volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    questions: dict[str, Callable[[], float]] = {
        TEMPERATURE: lambda: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
        MEMORY: lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30,
        SHARE: lambda: share_in_use(pynvml.nvmlDeviceGetMemoryInfo(gpu)),
        POWER: lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        ECC: lambda: pynvml.nvmlDeviceGetTotalEccErrors(gpu, *volatile),
        ENERGY: lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / MILLIJOULES,
    }
    unknown = pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_FunctionNotFound
    reading = Reading()
    for name, ask in questions.items():
        with suppress(*unknown):
            reading[name] = float(ask())
    return reading
