"""What trackers beside MLflow cost a training. `python -m benchmarks.trackers NAMES` is a contender."""

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.flow import prefect_server
from benchmarks.measure import Row, contenders, take_turns

NAME = "training with TensorBoard and W&B, against MLflow alone"
REPEATS, STEPS = 5, 100  # of each of the three LoRA runs: a tracker's own process takes a few seconds to start
BOTH = "tensorboard,wandb"  # W&B offline: what it writes, without a network


def against_mlflow() -> Row:
    """The seconds of the training of three LoRA runs, in turns; the least of each, as load from outside only adds."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as name,
        prefect_server(Path(name)) as api,
        contenders(
            ("benchmarks.trackers", BOTH),
            ("benchmarks.trackers", ""),
            PREFECT_API_URL=api,
            BACKPROPAGATE_HOME=str(Path(name) / "home"),
            WANDB_MODE="offline",
        ) as [both, alone],
    ):
        rounds = [(both.turn()["seconds"], alone.turn()["seconds"]) for _ in range(REPEATS + 1)][1:]
    ours, other = (min(seconds) for seconds in zip(*rounds, strict=True))
    return Row(NAME, ours, other, "the same training, recorded in MLflow alone", "s", "less", REPEATS)


def main(trackers: str) -> None:
    os.environ["BACKPROPAGATE_REPORT_TO"] = trackers
    from benchmarks import jobs
    from flows.multi_run import multi_run
    from flows.parameters import parameters

    spec = jobs.spec()
    longer = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": STEPS})})

    def turn() -> dict[str, float]:
        result = multi_run(**parameters("multi-run", longer, fresh=True))
        return {"seconds": sum(run.seconds for run in result.runs)}

    take_turns(turn)


if __name__ == "__main__":
    main(sys.argv[1])
