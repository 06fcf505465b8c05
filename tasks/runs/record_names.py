"""Names of runs and LoRA runs in MLflow's lists: what they are, and what came of them."""

from collections.abc import Sequence
from datetime import date

from backprop_core.schema.flows import flow_info
from backprop_core.schema.refs import RunResult
from tasks.runs.prepared_run import Prepared

SHOWN = 3  # names in a list of names


def begun_name(prepared: Prepared, day: date) -> str:
    """The name of a run that begins."""
    line, flow = prepared.spec.line, prepared.flow
    info = flow_info(flow)
    if info.makes_a_version:
        return f"{line} candidate {day}"
    if prepared.live and info.run_of_a_version:
        return info.run_of_a_version.format(line=line, number=prepared.live.number)
    if prepared.of:
        return f"{flow} {line} {prepared.of[:8]}"
    return f"{flow} {listed([source.task for source in prepared.sources]) or line}"


def ended_name(result: RunResult, day: date) -> str | None:
    """The name of a run that has ended; None to keep the one that it began with."""
    if not result.flow or not flow_info(result.flow).makes_a_version:
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
