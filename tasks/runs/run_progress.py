"""How far the run of a flow run is, from its journal: the last step, the losses before it, the time left."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store

TAIL = 16_384  # bytes of a journal: more than its last steps take


class RunProgress(Record):
    """The last step that a run has recorded."""

    step: int
    total: int | None
    loss: float | None
    losses: list[float] = Field(default_factory=list, description="Of the last steps, the oldest first.")
    seconds_left: float | None = Field(None, description="Until the last step, at the speed of these steps.")


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


def sign(config: Settings) -> list[int]:
    """Changes whenever a run of this store begins, ends, asks a person or was answered."""
    layout = Store(config.store_path).layout
    return [changed(folder) for folder in (layout.flow_runs, layout.leases, layout.questions)]


def changed(folder: Path) -> int:
    """When something was put into a folder or taken out of it; 0 if it does not exist."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def last_step(journal: Path, total: int | None) -> RunProgress | None:
    """The last step in a journal, with the steps of the same LoRA run before it."""
    events = [event for line in tail(journal) if (event := step_in(line))]
    if not events:
        return None
    last = events[-1]
    same = [event for event in events if event["run"] == last["run"]]
    return RunProgress(
        step=last["step"],
        total=total,
        loss=last["values"]["loss"],
        losses=[event["values"]["loss"] for event in same],
        seconds_left=seconds_left(same, total),
    )


def step_in(line: bytes) -> dict[str, Any] | None:
    """The step in a line; None for other lines, the first one of the tail, and one that is being written."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event if event.get("kind") == "metrics" and "loss" in event.get("values", {}) else None


def seconds_left(steps: list[dict[str, Any]], total: int | None) -> float | None:
    """The time of the steps that are left, at the speed of these; None for less than two."""
    first, last = steps[0], steps[-1]
    if not total or first["step"] == last["step"]:
        return None
    a_step: float = (last["time"] - first["time"]) / (last["step"] - first["step"])
    return a_step * max(0, total - int(last["step"])) / 1000


def tail(journal: Path) -> list[bytes]:
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - TAIL))
        return file.read().splitlines()
