"""What the page of a run shows. Each block has one source: the store, Prefect, or MLflow for the curve."""

import re
from datetime import datetime
from typing import Any

from pydantic import Field

from backprop_core.errors import DeploymentRefused, MLflowUnreachable, PrefectUnreachable, RunUnknown
from backprop_core.schema.records import Record
from backprop_core.schema.refs import StageRecord
from flows.server.web.line_runs import ENDED, FlowRun, flow_run
from flows.server.web.mlflow_api import MlflowApi, TrackedRun
from flows.server.web.past_runs import PastRun, past_run, reason_of
from flows.server.web.prefect_api import PrefectApi
from flows.server.web.state import Sources
from tasks.runs import run_report
from tasks.runs.run_progress import RunProgress, run_progress
from tasks.runs.run_report import RunReport

FLOW_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MOST_LINES, MOST_STAGES, MOST_CURVES = 40, 200, 50
MOMENT = 1.0  # seconds that what Prefect says of a run is kept, for several who look at once
LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
HELDOUT_LOSS = "heldout_loss"  # metric of a training with early stopping
STOPPABLE = ("PENDING", "RUNNING", "SCHEDULED")
RETRIABLE = ("FAILED", "CRASHED", "CANCELLED")


class LogLine(Record):
    """A line of a flow run's log."""

    at: datetime
    level: str
    message: str


class StageState(Record):
    """A stage of a run."""

    name: str
    state: str = Field(description="Its name in Prefect, or whether its result came from the cache.")
    seconds: float | None


class LossCurve(Record):
    """The training loss of one LoRA run."""

    name: str
    points: list[tuple[int, float]] = Field(description="Step and loss.")
    heldout: list[tuple[int, float]] = Field(
        default_factory=list, description="Step and loss on held-out rows; empty without early stopping."
    )


class InPrefect(Record):
    """What Prefect knows of a run."""

    run: FlowRun
    deployed: bool = Field(description="Whether a deployment of it can run it again.")
    stages: list[StageState]
    logs: list[LogLine] = Field(description="The last ones, oldest first.")


class InMlflow(Record):
    """What MLflow knows of a run."""

    link: str
    reason: str = Field(description="Why it ended as it did; empty if that is not recorded.")
    curves: list[LossCurve]


class RunState(Record):
    """Everything on the page of a run."""

    id: str = Field(description="As it was asked for: ours, or Prefect's.")
    name: str
    run: RunReport | None = Field(description="Null before it has begun.")
    recorded: PastRun | None = Field(description="As MLflow has it, if the store has nothing more of it.")
    progress: RunProgress | None
    prefect: InPrefect | None = Field(description="Null if Prefect does not know it, or does not answer.")
    mlflow: InMlflow | None = Field(description="Null if MLflow does not know it, or does not answer.")
    without_prefect: str | None = Field(description="Why there is nothing from Prefect.")
    without_mlflow: str | None = Field(description="Why there is nothing from MLflow.")

    @property
    def line(self) -> str:
        known = self.run or self.recorded or (self.prefect and self.prefect.run)
        return known.line if known else ""

    @property
    def status(self) -> str:
        """In one word: of Prefect while it knows more than the store."""
        if self.prefect and (not (self.run or self.recorded) or self.prefect.run.type not in ENDED):
            return self.prefect.run.state.lower()
        known = self.run or self.recorded
        return known.status if known else ""

    @property
    def stages(self) -> list[StageState]:
        """As the run's result has them, else as Prefect does."""
        if self.run and self.run.stages:
            return [
                StageState(
                    name=each.stage.replace("_", " "), state="cached" if each.cached else "done", seconds=each.seconds
                )
                for each in self.run.stages
            ]
        return self.prefect.stages if self.prefect else []

    @property
    def can_stop(self) -> bool:
        return self.prefect is not None and self.prefect.run.type in STOPPABLE

    @property
    def can_retry(self) -> bool:
        return self.prefect is not None and self.prefect.deployed and self.prefect.run.type in RETRIABLE


def run_state(id: str, sources: Sources) -> RunState:
    """A run, by its run_id or by the id of its flow run in Prefect. Raises RunUnknown, ArtifactDamaged."""
    run_id = run_report.run_of(id, sources.config) if FLOW_RUN.fullmatch(id) else id
    if not FLOW_RUN.fullmatch(id) and not run_report.RUN_ID.fullmatch(id):
        raise unknown(id)
    run = run_report.known_run(run_id, sources.config) if run_id else None
    flow_run_id = id if FLOW_RUN.fullmatch(id) else run.flow_run if run else None
    prefect, mlflow, recorded, without_prefect, without_mlflow = None, None, None, None, None
    try:
        prefect = in_prefect(flow_run_id, sources.prefect) if flow_run_id else None
    except (PrefectUnreachable, DeploymentRefused) as error:
        without_prefect = error.message
    try:
        tracked = tracked_runs(run_id, sources.mlflow) if run_id else None
        mlflow = in_mlflow(tracked, sources.mlflow) if tracked else None
        recorded = past_run(tracked[0], sources.config) if tracked and run is None else None
    except MLflowUnreachable as error:
        without_mlflow = error.message
    if not (run or prefect or without_prefect or recorded):
        raise unknown(id, without_mlflow)
    return RunState(
        id=id,
        name=prefect.run.name if prefect else recorded.name if recorded else named(run),
        run=run,
        recorded=recorded,
        progress=run_progress(flow_run_id, sources.config) if flow_run_id and run and run.status == "running" else None,
        prefect=prefect,
        mlflow=mlflow,
        without_prefect=without_prefect,
        without_mlflow=without_mlflow,
    )


def stage_state(known: StageRecord) -> StageState:
    """A stage as a result has it."""
    state = "cached" if known.cached else "done"
    return StageState(name=known.stage.replace("_", " "), state=state, seconds=known.seconds)


def unknown(id: str, without_mlflow: str | None = None) -> RunUnknown:
    if without_mlflow:
        return RunUnknown(f"the store has no run {id[:100]}", hint=f"look again once MLflow is there: {without_mlflow}")
    return RunUnknown(f"there is no run {id[:100]}", hint="/history lists all runs")


def named(run: RunReport | None) -> str:
    """What a run is called that has no name in Prefect."""
    if run is None:
        return "a run"
    return f"{run.line} v{run.version}" if run.version else f"{run.flow} {run.line}"


def in_prefect(id: str, api: PrefectApi) -> InPrefect | None:
    """What Prefect knows of a flow run; None if it does not know it. Raises PrefectUnreachable."""
    known = api.query(f"/flow_runs/{id}", keep=MOMENT)
    if known is None:
        return None
    return InPrefect(
        run=flow_run(known),
        deployed=is_deployed(known, api),
        stages=stages(id, api),
        logs=logs(id, api),
    )


def is_deployed(known: dict[str, Any], api: PrefectApi) -> bool:
    """Whether the deployment of a flow run is there."""
    deployment = known.get("deployment_id")
    return bool(deployment) and api.query(f"/deployments/{deployment}") is not None


def stages(id: str, api: PrefectApi) -> list[StageState]:
    """The task runs of a flow run, in the order in which they began."""
    wanted = {"flow_runs": {"id": {"any_": [id]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": MOST_STAGES}
    return [
        StageState(
            name=each["name"],
            state=(each.get("state_name") or "pending").lower(),
            seconds=each.get("total_run_time") if each.get("end_time") else each.get("estimated_run_time"),
        )
        for each in api.query("/task_runs/filter", wanted, keep=MOMENT)
    ]


def logs(id: str, api: PrefectApi) -> list[LogLine]:
    """The last lines of a flow run's log."""
    wanted = {"logs": {"flow_run_id": {"any_": [id]}}, "sort": "TIMESTAMP_DESC", "limit": MOST_LINES}
    return [log_line(each) for each in reversed(api.query("/logs/filter", wanted, keep=MOMENT))]


def log_line(known: dict[str, Any]) -> LogLine:
    return LogLine(at=known["timestamp"], level=LEVELS.get(known["level"], "info"), message=known["message"])


def tracked_runs(run_id: str, api: MlflowApi) -> list[TrackedRun]:
    """A run as MLflow has it, then its LoRA runs; empty if MLflow does not have it yet. Raises MLflowUnreachable."""
    found, _ = api.search(f"tags.`backprop.root` = '{run_id}'", MOST_CURVES)
    mine = [run for run in found if run.tags.get("backprop.run_id") == run_id]
    return [*mine, *(run for run in reversed(found) if run not in mine)] if mine else []


def in_mlflow(runs: list[TrackedRun], api: MlflowApi) -> InMlflow:
    """The curves of a run's LoRA runs. Raises MLflowUnreachable."""
    mine, *children = runs
    curves = [
        LossCurve(
            name=run.name,
            points=api.history(run.id, "loss"),
            heldout=api.history(run.id, HELDOUT_LOSS) if HELDOUT_LOSS in run.metrics else [],
        )
        for run in children
    ]
    return InMlflow(link=api.link(mine), reason=reason_of(mine), curves=[curve for curve in curves if curve.points])
