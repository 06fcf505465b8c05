"""MLflow tracking, the only package that imports mlflow: journal, sender, run history, registry, plots."""

from tasks.tracking.connection import tracking_uri
from tasks.tracking.history import RunSummary, list_runs, matching, show_run
from tasks.tracking.sender import Sender, SyncReport, mlflow_run_id, run_link, sync

__all__ = [
    "RunSummary",
    "Sender",
    "SyncReport",
    "list_runs",
    "matching",
    "mlflow_run_id",
    "run_link",
    "show_run",
    "sync",
    "tracking_uri",
]
