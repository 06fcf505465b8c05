"""One of the processes that train together, started by torchrun: `python -m tests.faults.rank JOB KEY OUT`."""

import json
import os
import sys
from pathlib import Path

from backprop_core.store.artifacts import Store
from backprop_core.training.distributed import join
from backprop_core.worker.runner import Runner


def main(job: str, key: str, out: str) -> None:
    """Train as the leader or as one of the others, and write what came of it."""
    parts = json.loads(Path(job).read_text())
    ranks = join(int(os.environ["WORLD_SIZE"]))
    runner = Runner(Store(Path(parts.pop("root")), alone=True), should_stop=lambda: False, ranks=ranks)
    if not ranks.leads:
        runner.follow()
        return
    parameters = {**parts, "start": None}
    result = runner.run("train", key, parameters, lambda event: None)
    Path(out).write_text(result.model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
