"""The GPU guard, fed with samples; the probe against a stand-in for the driver, at the library's own calls."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from backprop_core.errors import GPUTooHot
from backprop_core.schema.specs import GuardSpec
from backprop_core.training.gpu_guard import Blind, Guard, Reading, must_rest, nvml


class Scene:
    """A clock that only sleeping moves, and a guard whose probe hands out one sample a look."""

    def __init__(self, samples: Iterable[Reading | Blind], marks: GuardSpec = GuardSpec()) -> None:
        self.now, self.looks = 0.0, 0
        self._samples = iter(samples)
        self.guard = Guard(self.probe, marks, clock=lambda: self.now, sleep=self.sleep)

    def probe(self) -> Reading:
        self.looks += 1
        sample = next(self._samples)
        if isinstance(sample, Blind):
            raise sample
        return sample

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def step(self, should_stop: Callable[[], bool] = lambda: False) -> float:
        """What the loop does after a step; seconds paused."""
        self.now += 10
        self.guard.readings()
        began = self.now
        self.guard.cool_down(should_stop)
        return self.now - began


def at(*degrees: float) -> list[Reading]:
    return [{"gpu_temperature": value} for value in degrees]


@pytest.mark.parametrize(
    "resting, temperature, rests",
    [
        (False, 82, False),
        (False, 83, True),
        (True, 82, True),
        (True, 76, True),
        (True, 75, False),
        (False, None, False),
        (True, None, False),
    ],
)
def test_between_the_two_marks_it_stays_as_it_was(resting, temperature, rests):
    """Pause at 83 °C, go on at 75; what is not known pauses nothing."""
    assert must_rest(resting, temperature, GuardSpec()) is rests


def test_a_hot_gpu_pauses_until_it_is_cool():
    """Three looks, five seconds apart, until 75 °C; then the training goes on at 82 as before."""
    scene = Scene(at(70, 83, 80, 76, 75, 82))
    assert [scene.step() for _ in range(3)] == [0, 15, 0]
    assert scene.looks == 6


def test_the_marks_of_a_run_count():
    """With other marks it pauses, continues and gives up at those."""
    marks = GuardSpec(pause_at=60, continue_at=50, patience=20)
    scene = Scene(at(59, 60, 51, 50, 70), marks)
    assert [scene.step() for _ in range(2)] == [0, 10]
    with pytest.raises(GPUTooHot, match="50 °C in 20 s"):
        Scene(at(*[61] * 9), marks).step()


def test_marks_that_contradict_are_refused():
    """It cannot continue at a temperature at which it pauses."""
    with pytest.raises(ValueError, match="is not below"):
        GuardSpec(pause_at=70)


def test_a_full_or_hungry_gpu_is_said_when_it_begins(caplog):
    """Each rise above a mark of memory or power is one warning; without marks there is none."""
    shares, watts = [0.5, 0.95, 0.96, 0.5, 0.91], [200, 200, 320, 320, 100]
    samples = [
        {"gpu_temperature": 60, "gpu_memory_share": share, "gpu_power": draw}
        for share, draw in zip(shares, watts, strict=True)
    ]
    for marks in (GuardSpec(), GuardSpec(memory=0.9, power=300)):
        scene = Scene(samples, marks)
        assert [scene.step() for _ in samples] == [0] * 5
    assert [record.args for record in caplog.records] == [(0.95, 0.9), (320, 300.0), (0.91, 0.9)]


def test_a_gpu_that_stays_hot_ends_the_run():
    """After five minutes of one pause: a coded error that may be tried again later."""
    scene = Scene(at(*[90] * 100))
    with pytest.raises(GPUTooHot) as caught:
        scene.step()
    assert scene.now == 310
    assert caught.value.code == "RUNTIME_GPU_TEMPERATURE_CRITICAL" and caught.value.retryable


def test_a_pause_ends_when_the_run_is_to_stop():
    """SIGTERM is not kept waiting by a hot GPU."""
    answers = iter([False, False, True])
    scene = Scene(at(*[90] * 100))
    assert scene.step(lambda: next(answers)) == 10


def test_readings_are_metrics_at_most_every_five_seconds():
    """All that is known, and nothing twice."""
    reading = {"gpu_temperature": 60.0, "gpu_memory_gib": 7.5, "gpu_power": 250.0}
    scene = Scene([reading, {**reading, "gpu_power": 260.0}])
    assert scene.guard.readings() == reading
    scene.now = 4.9
    assert scene.guard.readings() == {}
    scene.now = 5
    assert scene.guard.readings()["gpu_power"] == 260


@pytest.mark.parametrize("sample", [Blind("the driver is gone"), {"gpu_power": 250.0}])
def test_a_blind_guard_is_said_once_and_stops_nothing(sample, caplog):
    """No driver, or no temperature: one warning, no pause, and what else is known is still a metric."""
    scene = Scene([sample] * 5)
    assert [scene.step() for _ in range(5)] == [0] * 5
    assert len(caplog.records) == 1
    assert "without the GPU guard" in caplog.text


def test_going_blind_ends_a_pause(caplog):
    """A probe that fails while the training waits for it lets it go on."""
    scene = Scene([*at(90, 90), Blind("the driver is gone"), *at(60)])
    assert scene.step() == 10
    assert "the driver is gone" in caplog.text


def test_new_memory_errors_are_said_when_they_appear(caplog):
    """Errors from before the run are no news; each later rise is one warning."""
    counts = [2, 2, 3, 3, 5]
    scene = Scene([{"gpu_temperature": 60, "gpu_ecc_errors": count} for count in counts])
    with caplog.at_level(logging.WARNING):
        for _ in counts:
            scene.step()
    assert [record.args for record in caplog.records] == [(3,), (5,)]


def test_energy_is_counted_from_the_first_reading():
    """The driver counts since it was loaded; a training says what it has used itself."""
    readings = [{"gpu_temperature": 60, "gpu_energy_wh": used} for used in (500.0, 500.5, 503.0)]
    scene, seen = Scene(readings), []
    for _ in readings:
        scene.now += 10
        seen.append(scene.guard.readings()["gpu_energy_wh"])
    assert seen == [0, 0.5, 3.0]


def test_without_a_driver_the_probe_is_blind():
    """The real library on a machine where this UUID is nobody's."""
    with pytest.raises(Blind):
        nvml("GPU-00000000-0000-0000-0000-000000000000")()


DRIVER = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
static int the_gpu;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    *gpu = &the_gpu;
    return strcmp(uuid, "GPU-bbbb") ? 6 /* not found */ : 0;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *celsius) { *celsius = 71; return gpu != &the_gpu; }
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory) {
    memory->used = 3ULL << 29;
    memory->total = 3ULL << 31;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts) { *milliwatts = 123500; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *used) { *used = 7200000; return 0; }
int nvmlDeviceGetTotalEccErrors(void *gpu, int type, int counter, unsigned long long *count) {
    return 3; /* not supported */
}
const char *nvmlErrorString(int result) { return "from the driver"; }
"""
ASK = """
import json, sys
from backprop_core.training.gpu_guard import Blind, nvml
try:
    print(json.dumps(nvml(sys.argv[1])()))
except Blind as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """A directory with a libnvidia-ml of one GPU that has no ECC."""
    directory = tmp_path_factory.mktemp("driver")
    (directory / "driver.c").write_text(DRIVER)
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, directory / "driver.c"], check=True)
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's library is found by LD_LIBRARY_PATH")
@pytest.mark.parametrize(
    "uuid, seen",
    [
        (
            "GPU-bbbb",
            {
                **{"gpu_temperature": 71, "gpu_memory_gib": 1.5, "gpu_memory_share": 0.25},
                **{"gpu_power": 123.5, "gpu_energy_wh": 2.0},
            },
        ),
        ("GPU-aaaa", "Not Found"),
    ],
)
def test_the_probe_asks_for_the_gpu_by_its_uuid(driver, uuid, seen):
    """°C, GiB, W and Wh from the driver's °C, bytes, mW and mJ; what it does not support is left out.

    Another GPU is not it.
    """
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    done = subprocess.run([sys.executable, "-c", ASK, uuid], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == seen
