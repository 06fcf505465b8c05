"""The job that the peer is measured with (about 11 s on an idle machine): 3 LoRA runs of 20 steps, one process.

python -m benchmarks.peer_job

A Qwen2 of 151 thousand parameters, 400 ShareGPT rows, SLAO, one thread. Ours is `backprop multi-run --json` from an
empty home, Prefect and MLflow included: with a PREFECT_HOME that was used before, and with an empty one.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import material
from benchmarks.measure import BIN, environment

TRIES = 3
RUNS, STEPS, SAMPLES = 3, 20, 120
JOB = ["--runs", str(RUNS), "--samples", str(SAMPLES), "--steps", str(STEPS), "--batch-size", "8", "--json"]


def main() -> None:
    """Print the seconds of each try."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        base = material.tiny_qwen2(place / "base")
        data = material.write_rows(material.sharegpt(material.chats(400)), place / "sharegpt.jsonl")
        job: list[str | Path] = [BIN / "backprop", "multi-run", "--model", base, "--data", data, *JOB]
        seconds(job, home=place / "warm-up", prefect=place / "used")
        for number in range(TRIES):
            used = seconds(job, home=place / f"home-a{number}", prefect=place / "used")
            empty = seconds(job, home=place / f"home-b{number}", prefect=place / f"empty-{number}")
            print(f"PREFECT_HOME used before: {used:5.1f} s   empty: {empty:5.1f} s", flush=True)


def seconds(job: list[str | Path], *, home: Path, prefect: Path) -> float:
    """Wall time of the job as one process."""
    settings = environment(BACKPROPAGATE_HOME=str(home), PREFECT_HOME=str(prefect))
    began = time.perf_counter()
    done = subprocess.run(job, env=settings, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    taken = time.perf_counter() - began
    result = json.loads(done.stdout)
    assert [run["steps"] for run in result["runs"]] == [STEPS] * RUNS and result["mlflow_run_id"], result
    return taken


if __name__ == "__main__":
    main()
