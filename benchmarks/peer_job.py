"""The job that the peer is measured with (about 11 s on an idle machine): 3 LoRA runs of 20 steps, one process.

python -m benchmarks.peer_job [--peer PYTHON]

A Qwen2 of 151 thousand parameters, 400 ShareGPT rows, SLAO, one thread. Ours is `backprop multi-run --json` from an
empty home, Prefect and MLflow included: with a PREFECT_HOME that was used before, and with an empty one. The peer runs
in turns with it, if the interpreter of an environment that has it is named.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import material
from benchmarks.measure import BIN, environment

TRIES = 3
RUNS, STEPS, SAMPLES = 3, 20, 120
JOB = ["--runs", str(RUNS), "--samples", str(SAMPLES), "--steps", str(STEPS)]
OURS = ["--batch-size", "8", "--json"]
THEIRS = [
    "--batch-size",
    "2",
    "--no-4bit",
    "--no-packing",
    "--lora-r",
    "16",
    "--lora-alpha",
    "32",
    "--optim",
    "adamw_torch",
]
WITHOUT_GPU = """
import sys
from backpropagate import cli, multi_run
multi_run.MultiRunTrainer._preflight_gpu_check = lambda self: True  # without a GPU it would train nothing and say OK
sys.exit(cli.main(sys.argv[1:]))
"""


def main() -> None:
    """Print the seconds of each try."""
    parser = argparse.ArgumentParser(description="The job that the peer is measured with.")
    parser.add_argument("--peer", help="Python of an environment with the peer in it.")
    peer = parser.parse_args().peer
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        base = material.tiny_qwen2(place / "base")
        data = material.write_rows(material.sharegpt(material.chats(400)), place / "sharegpt.jsonl")
        job: list[str | Path] = ["multi-run", "--model", base, "--data", data, *JOB]
        ours(job, home=place / "warm-up", prefect=place / "used")
        for number in range(TRIES):
            used = ours(job, home=place / f"home-a{number}", prefect=place / "used")
            empty = ours(job, home=place / f"home-b{number}", prefect=place / f"empty-{number}")
            line = f"PREFECT_HOME used before: {used:5.1f} s   empty: {empty:5.1f} s"
            if peer:
                line += f"   the peer: {theirs(peer, job, place / f'peer-{number}'):5.1f} s"
            print(line, flush=True)


def ours(job: list[str | Path], *, home: Path, prefect: Path) -> float:
    """Wall time of the job as one process."""
    settings = environment(BACKPROPAGATE_HOME=str(home), PREFECT_HOME=str(prefect))
    taken, out = timed([BIN / "backprop", *job, *OURS], settings)
    result = json.loads(out)
    assert [run["steps"] for run in result["runs"]] == [STEPS] * RUNS and result["mlflow_run_id"], result
    return taken


def theirs(python: str, job: list[str | Path], place: Path) -> float:
    """Wall time of the peer's, which makes batches of 8 out of four times 2."""
    settings = environment(BACKPROPAGATE_HOME=str(place / "home"), BACKPROPAGATE_TRAINING__BF16="false")
    taken, out = timed([python, "-c", WITHOUT_GPU, *job, *THEIRS, "--output", place / "out"], settings)
    assert f"Total runs: {RUNS}" in out, out
    return taken


def timed(command: list[str | Path], settings: dict[str, str]) -> tuple[float, str]:
    """Seconds, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        command, env=settings, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    return time.perf_counter() - began, done.stdout


if __name__ == "__main__":
    main()
