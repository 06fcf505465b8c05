"""A run with a checkpoint every 30 s, against none but the last.

python -m benchmarks.checkpoints BASE ROWS SECONDS STEPS
"""

import json
import math
import sys
import tempfile
from pathlib import Path

from benchmarks import material
from benchmarks.measure import Contender, Row, contenders, medians, take_turns

NAME = "a run with a checkpoint every 30 s, against none"
EVERY, NEVER = 30, 10**9  # seconds
LENGTH = 36  # seconds of a run, about
TRIED = 12  # steps that tell how many make such a run
ROWS = 96


def against_none() -> Row:
    """Seconds of the whole run; both save once at the end, as every run does."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        base = material.tiny_llama(Path(name) / "base")
        data = material.write_rows(material.chats(ROWS), Path(name) / "chats.jsonl")
        job = ("benchmarks.checkpoints", str(base), str(data))
        with contenders((*job, str(NEVER), str(TRIED))) as [trial]:
            steps = str(math.ceil(LENGTH / trial.turn()["seconds"] * TRIED))
        with contenders((*job, str(EVERY), steps), (*job, str(NEVER), steps)) as [saving, none]:
            seconds = medians({"saving": lambda: run(saving, least=2), "none": lambda: run(none, least=1)})
    return Row(NAME, seconds["saving"], seconds["none"], "a checkpoint at the end alone", "s", "less")


def run(process: Contender, *, least: int) -> float:
    """Seconds of a turn; raises AssertionError unless it saved that often."""
    done = process.turn()
    assert done["checkpoints"] >= least, done
    return done["seconds"]


def main(base: Path, data: Path, every: float, steps: int) -> None:
    """The contender: one training a turn."""
    from backprop_core import model
    from backprop_core.store import Store
    from backprop_core.training.loop import train
    from benchmarks.engines import SPEC
    from tests.core import nano

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    loaded = model.load(base, precision="fp32", device="cpu")
    spec = SPEC.model_copy(update={"steps": steps, "checkpoint_seconds": every, "checkpoints_kept": 1000})

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
            store, key = Store(Path(directory)), "0" * 64
            result = train(
                loaded,
                nano.commit_rows(store, rows),
                spec=spec,
                start=None,
                key=key,
                store=store,
                on_metrics=lambda *_: None,
                should_stop=lambda: False,
                keep_checkpoints=True,
            )
            saved = len(list(store.checkpoints(key).iterdir()))
            store.close()
        return {"seconds": result.seconds, "checkpoints": saved}

    take_turns(turn)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
