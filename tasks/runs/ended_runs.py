"""What is needed of the results of runs, each read once for as long as its file does not change."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from backprop_core.schema.refs import GGUFRef
from backprop_core.store.artifacts import Store

COMPARED = ("model", "training", "merge", "evaluation", "gate", "export", "publish", "min_new_rows")  # of two specs


class Ended(NamedTuple):
    """What is needed of a run's result."""

    line: str
    flow: str | None
    status: str
    reason: str
    average: float | None
    gguf: list[GGUFRef]
    answers: dict[str, str]  # of its first GGUF file, by prompt
    spec: dict[str, Any]
    base: dict[str, float]  # the base's scores by task
    forgetting: dict[str, float | None]


def ended(store: Store, run_id: str) -> Ended | None:
    """What is needed of a run's result; None without a result."""
    path = store.layout.run(run_id).result
    try:
        return ended_at(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=20_000)
def ended_at(path: Path, _changed: int) -> Ended:
    """Read a result once for as long as its file does not change."""
    made = json.loads(path.read_bytes())
    evaluation, gate = made.get("evaluation") or {}, made.get("gate") or {}
    tasks, gguf = evaluation.get("tasks", []), made.get("gguf") or []
    fields = GGUFRef.model_fields
    answers = (gguf[0].get("fidelity") or {}).get("answers", []) if gguf else []
    return Ended(
        line=made["line"],
        flow=made.get("flow"),
        status=made["status"],
        reason=made.get("reason") or gate.get("reason") or "",
        average=evaluation.get("average"),
        gguf=[GGUFRef(**{name: file[name] for name in fields}) for file in gguf],
        answers={each["prompt"]: each["answer"] for each in answers},
        spec={part: made["spec"].get(part) for part in COMPARED},
        base=dict(zip(tasks, evaluation.get("base_scores") or evaluation.get("base", []), strict=False)),
        forgetting=dict(zip(tasks, evaluation.get("forgetting", []), strict=False)),
    )


def results(store: Store) -> Iterator[tuple[int, Path]]:
    """When each run of the store has ended, in ns, and its result."""
    if not store.layout.runs.is_dir():
        return
    with os.scandir(store.layout.runs) as runs:
        for run in runs:
            path = store.layout.run(run.name).result
            with suppress(FileNotFoundError, NotADirectoryError):
                yield path.stat().st_mtime_ns, path
