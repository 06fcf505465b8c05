"""A run with a checkpoint every 30 s, against none but the last. `python -m benchmarks.checkpoints BASE ROWS`.

Both in one process, in turns: two processes with the same work differ by more than what is measured.
"""

import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import material
from benchmarks.measure import REPEATS, Row, contenders, take_turns

NAME = "a run with a checkpoint every 30 s, against none"
EVERY, NEVER = 30, 10**9  # seconds
LENGTH = 45  # seconds of a run, about
TRIED = 12  # steps that tell how many make such a run
ROWS = 96
KEY = "0" * 64


def against_none() -> Row:
    """Seconds of the whole run; both save once at the end, as every run does."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        base = material.tiny_llama(Path(name) / "base")
        data = material.write_rows(material.chats(ROWS), Path(name) / "chats.jsonl")
        with contenders(("benchmarks.checkpoints", str(base), str(data))) as [process]:
            rounds = [process.turn() for _ in range(REPEATS)]
    saving, none = (statistics.median(turn[side] for turn in rounds) for side in ("saving", "none"))
    return Row(NAME, saving, none, "a checkpoint at the end alone", "s", "less")


def main(base: Path, data: Path) -> None:
    """The contender: both runs a turn."""
    from backprop_core.models import loading
    from backprop_core.store.artifacts import Store
    from backprop_core.training.loop import train
    from benchmarks.engines import SPEC
    from tests.backprop_core import nano

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    loaded = loading.load(base, precision="fp32", device="cpu")

    def run(every: float, steps: int, *, least: int) -> float:
        """Seconds of a training that saved at least that often."""
        spec = SPEC.model_copy(update={"steps": steps, "checkpoint_seconds": every, "checkpoints_kept": 1000})
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
            store = Store(Path(directory))
            result = train(
                loaded,
                nano.commit_rows(store, rows),
                spec=spec,
                start=None,
                key=KEY,
                store=store,
                on_metrics=lambda *_: None,
                should_stop=lambda: False,
                keep_checkpoints=True,
            )
            saved = len(list(store.layout.checkpoints(KEY).iterdir()))
            store.close()
        assert saved >= least, saved
        return result.seconds

    run(NEVER, TRIED, least=1)  # the first one warms up
    steps = math.ceil(LENGTH / run(NEVER, TRIED, least=1) * TRIED)
    take_turns(lambda: {"saving": run(EVERY, steps, least=2), "none": run(NEVER, steps, least=1)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
