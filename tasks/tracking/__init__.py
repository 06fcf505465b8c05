"""The only room that says mlflow: journals are sent to it, history is read from it."""

from tasks.tracking.connection import tracking_uri
from tasks.tracking.history import RunSummary, list_runs, show_run
from tasks.tracking.sender import Sender, SyncReport, mlflow_run_id, run_link, sync

__all__ = [
    "RunSummary",
    "Sender",
    "SyncReport",
    "list_runs",
    "mlflow_run_id",
    "run_link",
    "show_run",
    "sync",
    "tracking_uri",
]
