"""Where MLflow is, and a client that has proved to reach it."""

import gc
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backprop_core.blanking import blank_secrets
from backprop_core.errors import MLflowUnreachable, NameTaken
from backprop_core.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAMESPACE, LINE = "backprop.namespace", "backprop.line"  # tags of an experiment of ours
QUIET_AND_QUICK = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the journal is what tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def own_database(settings: Settings) -> Path:
    return settings.home_path / "mlflow.db"


def tracking_uri(settings: Settings) -> str:
    """MLFLOW_TRACKING_URI, else a database in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own_database(settings).as_posix()}"


def prepare() -> None:
    """Import mlflow with telemetry, chatter and long retries off, unless the environment says otherwise."""
    for name, value in QUIET_AND_QUICK.items():
        os.environ.setdefault(name, value)
    with uncollected():
        import mlflow  # noqa: F401


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage while the block runs: what an import makes stays, and a third of it would be searching."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def connect(settings: Settings) -> "MlflowClient":
    """A client whose first request was answered. Raises MLflowUnreachable within seconds."""
    prepare()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri(settings)
    try:
        if uri.startswith("sqlite:///"):
            try_database(Path(uri.removeprefix("sqlite:///")))
        with uncollected():
            client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = blank_secrets(str(error)).strip().splitlines()[0][:200]
        raise MLflowUnreachable(
            f"MLflow does not answer at {blank_secrets(uri)}: {reason}", hint="start it, or set MLFLOW_TRACKING_URI"
        ) from error
    return client


def try_database(path: Path) -> None:
    """Raise unless the file can be written now; MLflow itself would try for minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


def experiment_of(client: "MlflowClient", settings: Settings, line: str) -> str:
    """The id of the line's experiment, made if it is not there. Raises NameTaken if it is not ours."""
    name = f"{settings.namespace}.{line}"
    tags = {NAMESPACE: settings.namespace, LINE: line}
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifact_location(settings, name), tags=tags))
    if not tags.items() <= found.tags.items():
        raise NameTaken(
            f"MLflow has an experiment {name} that is not ours", hint="set BACKPROPAGATE_NAMESPACE to another name"
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def artifact_location(settings: Settings, name: str) -> str | None:
    """A server decides itself; for a database it would be the current directory."""
    if urlsplit(tracking_uri(settings)).scheme in ("http", "https"):
        return None
    return (settings.home_path / "mlruns" / name).as_uri()
