"""A sweep of eight settings over two workers beside one: `nice -n -10 python -m benchmarks.fan_out [--steps N]`.

Each in a new home, one thread a worker, two cores. The table and the digests have to be the same. Besides the ratio of
wall times it prints the processor time of each and the load of the machine: where others compute too, two workers do
not get two cores. What two cores can give at most is what two commands take that have half of the settings each and
run at once, without a scheduler between them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RATES, RANKS = "training.learning_rate=1e-4,3e-4,1e-3,3e-3", "training.lora.rank={}"
GRID = [RATES, RANKS.format("4,8")]
SAME = ("settings", "standing", "train_loss", "steps", "cached")


class Took(NamedTuple):
    """Seconds of a sweep, and what it found."""

    wall: float
    cpu: float
    trainings: float
    table: list[dict[str, Any]]
    digests: list[str]


def started(workers: int, steps: int, home: Path, grid: list[str]) -> "subprocess.Popen[bytes]":
    """The command of one sweep in a new home."""
    home.mkdir()
    places = {"BACKPROPAGATE_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "OMP_NUM_THREADS": "1"}
    env = os.environ | places | {"BACKPROPAGATE_FAN_OUT": f"local:{workers}"}
    data, base = ROOT / "examples/quickstart.jsonl", ROOT / "examples/base"
    command = [sys.executable, "-m", "flows", "sweep", "--data", str(data), "--model", str(base), "--steps", str(steps)]
    tried = [word for field in grid for word in ("--set", field)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, *tried, "--json"], env=env, cwd=home, **quiet)  # type: ignore[call-overload, no-any-return]


def sweep(workers: int, steps: int, home: Path) -> Took:
    """One sweep of all settings."""
    began, before = time.monotonic(), children()
    told = finished(started(workers, steps, home, GRID))
    wall, cpu = time.monotonic() - began, children() - before
    made = json.loads(told)
    table = [{name: row[name] for name in SAME} for row in made["sweep"]["cells"]]
    trainings = sum(one["seconds"] for one in made["stages"] if one["stage"] == "train")
    return Took(wall, cpu, trainings, table, [one["digest"] for one in made["stages"]])


def halves(steps: int, place: Path) -> float:
    """Seconds of two commands at once, with half of the settings each."""
    began = time.monotonic()
    both = [started(1, steps, place / f"half{rank}", [RATES, RANKS.format(rank)]) for rank in (4, 8)]
    for each in both:
        finished(each)
    return time.monotonic() - began


def finished(command: "subprocess.Popen[bytes]") -> bytes:
    """What a command prints. Raises CalledProcessError."""
    told, _ = command.communicate()
    if command.returncode:
        raise subprocess.CalledProcessError(command.returncode, command.args)
    return told


def children() -> float:
    """Processor seconds of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as place:
        load = os.getloadavg()[0]
        one, two = (sweep(count, steps, Path(place) / name) for count, name in ((1, "one"), (2, "two")))
        apart = halves(steps, Path(place))
    assert one.table == two.table and one.digests == two.digests, "the results differ"
    for name, took in (("one worker", one), ("two workers", two)):
        print(f"{name:12} {took.wall:7.1f} s wall, {took.cpu:7.1f} s processor, trainings {took.trainings:7.1f} s")
    print(f"half of the settings in each of two commands at once: {apart:.1f} s, {one.wall / apart:.2f} times as fast")
    print(f"two are {one.wall / two.wall:.2f} times as fast; load before {load:.1f}, after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
