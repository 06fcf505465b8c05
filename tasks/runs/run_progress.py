"""How far the run of a flow run is, from its journal: the last step and its loss."""

import json
from pathlib import Path

from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store

TAIL = 16_384  # bytes of a journal: more than its last steps take


class RunProgress(Record):
    """The last step that a run has recorded."""

    step: int
    total: int | None
    loss: float | None


def run_progress(flow_run: str, config: Settings) -> RunProgress | None:
    """The progress of what a deployed flow run has begun; None while it has no step."""
    store = Store(config.store_path)
    begun = store.layout.flow_run(flow_run)
    run_id = begun.read_text(encoding="utf-8") if begun.is_file() else ""
    journal = config.layout.journal.lines(run_id)
    if not run_id or not journal.is_file():
        return None
    spec = json.loads(store.layout.run(run_id).spec.read_bytes())["spec"]
    return last_step(journal, spec["training"].get("steps"))


def last_step(journal: Path, total: int | None) -> RunProgress | None:
    """The last step in a journal."""
    for line in reversed(tail(journal)):
        try:
            event = json.loads(line)
        except ValueError:  # the first line of the tail is cut, the last may be written now
            continue
        if event.get("kind") == "metrics" and "loss" in event.get("values", {}):
            return RunProgress(step=event["step"], total=total, loss=event["values"]["loss"])
    return None


def tail(journal: Path) -> list[bytes]:
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - TAIL))
        return file.read().splitlines()
