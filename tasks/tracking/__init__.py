"""MLflow tracking, the only package that imports mlflow: journal, sender, run history, registry, plots."""

from tasks.tracking.connection import tracking_uri
from tasks.tracking.history import (
    ExportedRun,
    RunSummary,
    Sort,
    document_of,
    exported,
    list_runs,
    show_run,
    status_of,
)
from tasks.tracking.run_filter import RunFilter
from tasks.tracking.sender import Sender, SyncReport, mlflow_run_id, run_link, sync

__all__ = [
    "ExportedRun",
    "RunFilter",
    "RunSummary",
    "Sender",
    "Sort",
    "SyncReport",
    "document_of",
    "exported",
    "list_runs",
    "mlflow_run_id",
    "run_link",
    "show_run",
    "status_of",
    "sync",
    "tracking_uri",
]
