"""MLflow tracking, the only package that imports mlflow: journal, sender, run history, registry, plots."""

from tasks.tracking.connection import tracking_uri
from tasks.tracking.history import (
    ExportedRun,
    RunSummary,
    Sort,
    document_of,
    exported,
    list_runs,
    matching,
    show_run,
    status_of,
)
from tasks.tracking.sender import Sender, SyncReport, mlflow_run_id, run_link, sync

__all__ = [
    "ExportedRun",
    "RunSummary",
    "Sender",
    "Sort",
    "SyncReport",
    "document_of",
    "exported",
    "list_runs",
    "matching",
    "mlflow_run_id",
    "run_link",
    "show_run",
    "status_of",
    "sync",
    "tracking_uri",
]
