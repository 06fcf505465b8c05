"""Names of runs and LoRA runs in MLflow's lists: what they are, and what came of them."""

from collections.abc import Sequence
from datetime import date

from backprop_core.schema.refs import RunResult
from tasks.runs.prepared_run import Prepared

MAKES_A_VERSION = ("retrain", "promote")
OF_A_VERSION = {"release": "release {line} v{number}", "rollback": "roll back {line} to v{number}"}
SHOWN = 3  # names in a list of names


def begun_name(prepared: Prepared, day: date) -> str:
    """The name of a run that begins."""
    line, flow = prepared.spec.line, prepared.flow
    if flow in MAKES_A_VERSION:
        return f"{line} candidate {day}"
    if prepared.live and flow in OF_A_VERSION:
        return OF_A_VERSION[flow].format(line=line, number=prepared.live.number)
    if prepared.of:
        return f"{flow} {line} {prepared.of[:8]}"
    return f"{flow} {listed([source.task for source in prepared.sources]) or line}"


def ended_name(result: RunResult, day: date) -> str | None:
    """The name of a run that has ended; None to keep the one that it began with."""
    if result.flow not in MAKES_A_VERSION:
        return None
    return f"{result.line} v{result.version}" if result.status == "finished" else f"{result.line} {result.status} {day}"


def lora_run_name(dataset: str, index: int, total: int) -> str:
    """The name of one LoRA run of several."""
    return f"train {dataset}" if total == 1 else f"train {dataset} ({index + 1} of {total})"


def listed(names: Sequence[str]) -> str:
    """The first names, each once, and how many more there are."""
    known = list(dict.fromkeys(names))
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more
