"""MLflow's REST API for the pages: runs and their curves. MLflow's own client would cost seconds and memory."""

import os
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from backprop_core.errors import MLflowUnreachable
from backprop_core.runtime.redaction import blank_address

PATIENCE = httpx.Timeout(5.0)  # seconds: a page says that MLflow is away rather than wait for it
ROOT = "/api/2.0/mlflow"
OURS = "tags.`backprop.namespace` = '{}'"
MOST_EXPERIMENTS = 1000
HINT = "wait for it to restart, or look at `backprop doctor`"


class TrackedRun(NamedTuple):
    """A run as MLflow has it. Times are in ms since 1970."""

    id: str
    experiment: str
    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    started: int
    ended: int | None


class MlflowApi:
    """An MLflow server, by its address. Safe for any number of threads."""

    def __init__(self, uri: str, auth: str | None, namespace: str) -> None:
        self._uri, self._ours, self._guard = uri.rstrip("/"), OURS.format(namespace), threading.Lock()
        self._headers = credentials(auth)
        self._client: httpx.Client | None = None

    def search(self, condition: str, limit: int, after: str = "") -> tuple[list[TrackedRun], str]:
        """Runs of our namespace that match a condition, newest first, and where the next ones begin ("": none).

        Raises MLflowUnreachable.
        """
        ours = {"filter": self._ours, "max_results": MOST_EXPERIMENTS}
        experiments = self._ask("POST", "/experiments/search", ours).get("experiments", [])
        if not experiments:
            return [], ""
        wanted = {
            "experiment_ids": [each["experiment_id"] for each in experiments],
            "filter": condition,
            "max_results": limit,
            **({"page_token": after} if after else {}),
        }
        found = self._ask("POST", "/runs/search", wanted)
        return [tracked(run) for run in found.get("runs", [])], found.get("next_page_token", "")

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        """The step and value of every point of a metric. Raises MLflowUnreachable."""
        found = self._ask("GET", f"/metrics/get-history?run_id={run}&metric_key={metric}", None).get("metrics", [])
        return sorted((int(each.get("step", 0)), float(each["value"])) for each in found)

    def link(self, run: TrackedRun) -> str:
        """The page of a run."""
        return f"{blank_address(self._uri)}/#/experiments/{run.experiment}/runs/{run.id}"

    def close(self) -> None:
        with self._guard:
            if self._client:
                self._client.close()

    def _ask(self, method: str, path: str, body: Any) -> dict[str, Any]:
        if not self._uri.startswith("http"):
            raise MLflowUnreachable("runs are recorded in a database, not by a server", hint="use `backprop list-runs`")
        with self._guard:
            if self._client is None:
                self._client = httpx.Client(headers=self._headers, timeout=PATIENCE)
        try:
            answer = self._client.request(method, f"{self._uri}{ROOT}{path}", json=body)
        except httpx.HTTPError as error:
            raise self._away(type(error).__name__) from error
        if answer.status_code != httpx.codes.OK:
            raise self._away(f"HTTP {answer.status_code}")
        return dict(answer.json())

    def _away(self, why: str) -> MLflowUnreachable:
        return MLflowUnreachable(f"MLflow does not answer at {blank_address(self._uri)}: {why}", hint=HINT)


def credentials(auth: str | None) -> dict[str, str]:
    """The header for `user:password`, or for what MLflow's own environment names."""
    name, _, password = auth.partition(":") if auth else (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), "", "")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if name and password:
        return {"Authorization": httpx.BasicAuth(name, password)._auth_header}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def tracked(run: Mapping[str, Any]) -> TrackedRun:
    """A run as MLflow gives it."""
    info, data = run["info"], run.get("data", {})
    return TrackedRun(
        id=info["run_id"],
        experiment=info["experiment_id"],
        name=info.get("run_name", ""),
        tags={tag["key"]: tag["value"] for tag in data.get("tags", [])},
        metrics={metric["key"]: float(metric["value"]) for metric in data.get("metrics", [])},
        started=int(info["start_time"]),
        ended=int(info["end_time"]) if info.get("end_time") else None,
    )
