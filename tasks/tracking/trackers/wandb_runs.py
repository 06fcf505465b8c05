"""Writes a run and its child runs to Weights & Biases with its own client, which reads WANDB_* as everywhere.

A row of W&B's history is a line of metrics, and its step is the line's number in its run: W&B says how many rows it
has, and none is sent again. What was sent counts only once W&B has all rows of the run at its end, so after an outage
everything that W&B lacks is sent. Nothing of the machine, the program or its packages is sent.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backprop_core.runtime.settings import Settings
from tasks.tracking.journal_lines import AnyLine, Ended, Measured, Started, Tagged
from tasks.tracking.trackers.forwarding import State
from tasks.tracking.trackers.run_texts import labels, run_name

os.environ["WANDB_ERROR_REPORTING"] = "false"  # read on import: no telemetry
os.environ.setdefault("WANDB_SILENT", "true")

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

STEP = "step"  # the step of the training, or of the matrix
SECONDS = 20  # that W&B may take to answer, or to take the rest
QUIET: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "host": "",
    "init_timeout": SECONDS,
    "finish_timeout": SECONDS,
    "finish_timeout_raises": True,
    "x_graphql_retry_max": 2,
    "x_file_stream_retry_max": 2,
    "x_file_transfer_retry_max": 2,
}


class Incomplete(OSError):
    """W&B has not taken all rows of a run."""


class WandbRun:
    """One run at W&B, from where it left off."""

    def __init__(self, settings: Settings, root: str, first: Started, rows: int) -> None:
        import wandb

        place = settings.layout.wandb
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.rows = rows  # read of the journal so far
        self.run: Run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or f"{settings.namespace}-{first.line}",
            id=first.run,
            name=run_name(settings, root) + (f" {first.name}" if first.parent else ""),
            group=run_name(settings, root),
            job_type="run" if first.parent else "flow",
            config={"run_id": first.run, "line": first.line},
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**QUIET, root_dir=str(place)),
        )
        self._known = self.run.starting_step
        self.run.define_metric("*", step_metric=STEP)

    def write(self, line: AnyLine) -> None:
        match line:
            case Started():
                self.run.config.update({**line.params, **labels(line.tags)}, allow_val_change=True)
            case Tagged():
                self.run.summary.update(labels(line.tags))
            case Measured():
                if self.rows >= self._known:
                    self.run.log({**line.values, STEP: line.step}, step=self.rows)
                self.rows += 1
            case Ended():
                self.run.summary.update({"status": line.status, "error": line.error.code if line.error else ""})

    def finish(self, *, failed: bool) -> None:
        """Wait until W&B has everything. Raises Incomplete if it has not."""
        import wandb

        self.run.finish(exit_code=int(failed))
        if self.rows and not self.run.offline:
            has = wandb.Api(timeout=SECONDS).run(f"{self.run.entity}/{self.run.project}/{self.run.id}")
            if has.lastHistoryStep < self.rows - 1:
                raise Incomplete(f"W&B has not taken all rows of run {self.run.id}")


class WandbRuns:
    """A run and its child runs at W&B."""

    def __init__(self, settings: Settings, run_id: str, state: State) -> None:
        self._settings, self._root = settings, run_id
        self._rows: dict[str, int] = dict(state.get("rows", {}))  # run -> rows that were sent to its end
        self._runs: dict[str, WandbRun] = {}
        self._ended: dict[str, bool] = {}  # run -> whether it failed

    def write(self, lines: Sequence[AnyLine]) -> None:
        for line in lines:
            if isinstance(line, Started) and line.run not in self._runs:
                self._runs[line.run] = WandbRun(self._settings, self._root, line, self._rows.get(line.run, 0))
            if line.run in self._runs:
                self._runs[line.run].write(line)
            if isinstance(line, Started | Ended):
                self._ended[line.run] = isinstance(line, Ended) and line.status == "failed"

    def settle(self, *, over: bool) -> State | None:
        if not over:
            return None
        for run_id, run in self._runs.items():
            run.finish(failed=self._ended.get(run_id, False))
            self._rows[run_id] = run.rows
        return {"rows": self._rows}


def open_stream(settings: Settings, run_id: str, state: State) -> WandbRuns:
    return WandbRuns(settings, run_id, state)
