"""What the store knows of a run, for its page: state, verdict, stages, files, error.

Reads the store and the run's journal alone: neither Prefect nor MLflow has to answer.
"""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from backprop_core.errors import RunUnknown
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import Decision, GateReport
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ErrorRecord, Evaluation, RunId, RunResult, StageRecord, Status
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import RunLayout
from backprop_core.store.locks import is_held
from tasks.runs.line_report import time_of
from tasks.runs.readable_records import UNREADABLE, readable
from tasks.runs.results import early_stopping
from tasks.runs.version_files import ADAPTER, MODEL, StoredFile, of_artifact

RUN_ID = re.compile(r"[0-9a-f]{32}")
FLOW_RUN = "prefect.flow_run_id"  # tag of a run
HEAD = 65_536  # bytes of a journal: more than its first line takes


class RunReport(Record):
    """A run, as the store has it."""

    run_id: RunId
    flow: str
    line: str
    status: Status
    version: int | None = Field(description="The version of the line that it made.")
    reason: str = Field(description="What came of it, in a sentence.")
    base: str
    data: list[str] = Field(description="Where its rows came from.")
    began: datetime
    ended: datetime | None = Field(description="Null while it runs, and after it was killed.")
    flow_run: str | None = Field(description="The flow run of Prefect's that began it.")
    stages: list[StageRecord]
    evaluation: Evaluation | None
    early_stopping: list[str] = Field(description="Which step each LoRA run has kept; empty without early stopping.")
    gate: GateReport | None
    decision: str | None = Field(description="What a person said, or why no person did.")
    files: list[StoredFile]
    error: ErrorRecord | None
    resumable: bool = Field(description="Whether it can continue from where it stopped.")


def run_of(flow_run: str, config: Settings) -> str | None:
    """The run that a flow run of a deployment has begun; None before that, and after it was pruned."""
    path = Store(config.store_path).layout.flow_run(flow_run)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def error_of(flow_run: str, config: Settings) -> ErrorRecord | None:
    """Why what a flow run has begun failed; None if nothing readable says so."""
    run_id = run_of(flow_run, config)
    path = Store(config.store_path).layout.run(run_id).result if run_id else None
    with suppress(*UNREADABLE):
        made = json.loads(path.read_bytes()) if path and path.is_file() else {}
        return ErrorRecord.model_validate(made["error"]) if made.get("error") else None
    return None


def run_report(run_id: str, config: Settings) -> RunReport:
    """A run. Raises RunUnknown if the store has none of this id, ArtifactDamaged."""
    store = Store(config.store_path)
    run = store.layout.run(run_id)
    if not RUN_ID.fullmatch(run_id) or not (run.spec.is_file() or run.result.is_file()):
        raise RunUnknown(f"there is no run {run_id[:100]} in the store", hint="`backprop list-runs` lists all runs")
    with of_run(run_id):
        made = result_of(run)
        asked = json.loads(run.spec.read_bytes()) if run.spec.is_file() else described(made)
        status = status_of(run_id, made, store)
        over = made if status != "running" else None
        return RunReport(
            run_id=run_id,
            flow=asked["flow"],
            line=asked["spec"]["line"],
            status=status,
            version=over.version if over else None,
            reason=said(over),
            base=asked["base"]["name"],
            data=[str(dataset["path"]) for dataset in asked["spec"].get("datasets", [])],
            began=time_of(run.spec if run.spec.is_file() else run.result),
            ended=time_of(run.result) if over else None,
            flow_run=begun_by(run_id, config),
            stages=over.stages if over else [],
            evaluation=over.evaluation if over else None,
            early_stopping=early_stopping(over.runs) if over else [],
            gate=over.gate if over else None,
            decision=decision(run),
            files=[link for link, _ in files(store, made)] if made else [],
            error=over.error if over else None,
            resumable=status != "running" and run.spec.is_file() and can_continue(asked["flow"], made),
        )


def known_run(run_id: str, config: Settings) -> RunReport | None:
    """A run; None if the store has none of this id. Raises ArtifactDamaged."""
    try:
        return run_report(run_id, config)
    except RunUnknown:
        return None


def of_run(run_id: str) -> AbstractContextManager[None]:
    """Raise ArtifactDamaged if a record of a run cannot be read."""
    return readable(f"run {run_id}", f"runs/{run_id}")


def result_of(run: RunLayout) -> RunResult | None:
    """What a run has made; None before it has ended."""
    return RunResult.model_validate_json(run.result.read_bytes()) if run.result.is_file() else None


def described(made: RunResult | None) -> dict[str, Any]:
    """What is known of the spec of a run that was kept without it."""
    assert made
    return {"flow": made.flow or "", "spec": made.spec, "base": {"name": made.base.name if made.base else ""}}


def status_of(run_id: str, made: RunResult | None, store: Store) -> Status:
    """Running while its process lives; interrupted if that died without a result."""
    lock = store.layout.lease_lock(run_id)
    if is_held(lock):
        return "running"
    return made.status if made else "interrupted"


def said(made: RunResult | None) -> str:
    """Why a run ended as it did; nothing for one that failed, whose error says it."""
    if made is None or made.error:
        return ""
    return made.reason or (made.gate.reason if made.gate else "")


def decision(run: RunLayout) -> str | None:
    """The answer to the question whether the run's result may go live."""
    return Decision.model_validate_json(run.decision.read_bytes()).sentence if run.decision.is_file() else None


def can_continue(flow: str, made: RunResult | None) -> bool:
    """Whether a run was killed, stopped, or failed with a retryable error.

    False for a finished run, for a failure that needs other parameters or files, and for `drift`, because prune keeps
    nothing of its runs.
    """
    if not flow_info(flow).resumable:
        return False
    return made is None or made.status == "interrupted" or bool(made.error and made.error.retryable)


def begun_by(run_id: str, config: Settings) -> str | None:
    """Prefect's id of the flow run that has begun a run, from the first line of its journal."""
    journals = config.layout.journal
    for path in (journals.lines(run_id), journals.sent.lines(run_id)):
        if path.is_file():
            with path.open("rb") as file:
                return flow_run_in(file.readline(HEAD))
    return None


def flow_run_in(line: bytes) -> str | None:
    """The flow run that a journal's first line names."""
    try:
        started: dict[str, Any] = json.loads(line)
    except ValueError:  # it is being written
        return None
    return (started.get("tags") or {}).get(FLOW_RUN)


def files(store: Store, made: RunResult) -> Iterator[tuple[StoredFile, Path]]:
    """The GGUF files and the merged adapter of a run that are still in the store, with their paths."""
    name = f"{made.line}-{made.run_id[:8]}"
    for ref in made.gguf:
        yield from of_artifact(store, ref.digest, {MODEL: (ref.quantization, f"{name}-{ref.quantization}.gguf")})
    if made.merged:
        adapter = {inside: (what, f"{name}-{inside}") for inside, what in ADAPTER.items()}
        yield from of_artifact(store, made.merged.digest, adapter)


def download(run_id: str, filename: str, config: Settings) -> tuple[StoredFile, Path]:
    """A file of a run, by its name as a download. Raises RunUnknown."""
    store = Store(config.store_path)
    result = store.layout.run(run_id).result
    if RUN_ID.fullmatch(run_id) and result.is_file():
        with of_run(run_id):
            for link, path in files(store, RunResult.model_validate_json(result.read_bytes())):
                if link.filename == filename and path.is_file() and not path.is_symlink():
                    return link, path
    raise RunUnknown(
        f"run {run_id[:100]} has no file {filename[:100]}",
        hint="it may have been pruned: `backprop export` writes it again",
    )
