"""Connects to MLflow, a server or the home's SQLite database, with coded errors if it is unreachable or damaged."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from backprop_core.errors import BackpropError, HistoryDamaged, MLflowUnreachable, NameTaken, system_error
from backprop_core.runtime import garbage
from backprop_core.runtime.redaction import blank_address, excerpt
from backprop_core.runtime.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities import PagedList

PAGE = 1000  # experiments, runs or models a request
NAMESPACE, LINE = "backprop.namespace", "backprop.line"  # tags of an experiment of ours
SQLITE = "sqlite:///"
PATIENCE = 120.0  # seconds: the first tables take five, on a busy machine many times that
QUIET_AND_QUICK = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # else it prints tracebacks of what is said in one line here
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the journal is what tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def own_uri(settings: Settings) -> str:
    """The URI of the home's database. A path with `?` needs SQLite's URI form, as SQLAlchemy ends a path at `?`."""
    path = settings.layout.mlflow_database
    if "?" in path.as_posix():
        return f"sqlite+pysqlite:///{path.as_uri()}?uri=true"
    return f"{SQLITE}{path.as_posix()}"


def tracking_uri(settings: Settings) -> str:
    """MLFLOW_TRACKING_URI, else a database in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(settings)


def is_own(settings: Settings) -> bool:
    """Whether runs are recorded in the home's database."""
    return tracking_uri(settings) == own_uri(settings)


def prepare() -> None:
    """Import mlflow with telemetry, verbose logs and long retries off, unless the environment sets them."""
    for name, value in QUIET_AND_QUICK.items():
        os.environ.setdefault(name, value)
    with garbage.none():
        import mlflow  # noqa: F401


def connect(settings: Settings) -> "MlflowClient":
    """A client whose first request succeeded. Takes seconds; more if the home's database must be created.

    Raises MLflowUnreachable, HistoryDamaged, PlaceUnusable, DiskFull, StorageFailed.
    """
    prepare()
    from mlflow import MlflowClient

    uri = tracking_uri(settings)
    with answering(settings), migrating(settings):
        if is_own(settings):
            try_database(settings.layout.mlflow_database)
        elif uri.startswith(SQLITE):
            try_database(Path(uri.removeprefix(SQLITE)))
        with garbage.none():
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    return client


@contextmanager
def answering(settings: Settings, fault: str = "does not answer") -> Iterator[None]:
    """Turn errors of MLflow or its database within the block into coded errors; `fault` describes the failure."""
    prepare()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise refusal(error, settings, fault) from error


def refusal(error: Exception, settings: Settings, fault: str) -> BackpropError:
    """The coded error for MLflow's error."""
    if is_own(settings):
        own, said = settings.layout.mlflow_database, str(error)
        if known := broken(settings, said) or system_error(error) or system_error(attempted(own)):
            return known
    reason = (excerpt(str(error), 200) or type(error).__name__).split(" (Background on this error")[0]
    return MLflowUnreachable(
        f"MLflow {fault} at {blank_address(tracking_uri(settings))}: {reason}",
        hint="start it, or set MLFLOW_TRACKING_URI",
    )


def broken(settings: Settings, said: str) -> BackpropError | None:
    """The coded error if the home's database is damaged or of another MLflow version; else None."""
    path = settings.layout.mlflow_database
    aside = (
        f"mv {path} {path}.broken; the next command makes it again, with every run of {settings.layout.journal.root}"
    )
    if "database schema" in said or "Can't locate revision" in said:
        return HistoryDamaged(
            f"{path} was created by another version of MLflow",
            hint=f"if that was older: backprop upgrade; or start a new one: {aside}",
        )
    if any(each in said for each in ("no such table", "no such column", "already exists", "duplicate column")):
        return HistoryDamaged(f"{path} is incomplete", hint=f"set it aside: {aside}")
    if path.is_file() and (problem := damage(path)):
        return HistoryDamaged(f"{path} is a damaged database: {problem}", hint=f"set it aside: {aside}")
    return None


def damage(path: Path) -> str | None:
    """SQLite's description of the damage; None if the database is intact."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=2, uri=True)) as database:
            [found] = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # busy, or not to be opened
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else str(found).replace("\n", " ")


def attempted(path: Path) -> BaseException:
    """The error of a test write to a database, which is clearer than MLflow's own errors."""
    try:
        try_database(path)
    except (sqlite3.Error, OSError) as error:
        return error
    return FileNotFoundError()


def try_database(path: Path) -> None:
    """Raise if the file is not writable now; MLflow itself would retry for minutes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with closing(sqlite3.connect(path, timeout=2, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


# databases that this process has seen complete: many callers connect, and each would take the lock to look again
_made: set[Path] = set()


@contextmanager
def migrating(settings: Settings) -> Iterator[None]:
    """Let only one process at a time create the tables of the home's database, as two would damage it.

    Raises MLflowUnreachable if another process takes too long.
    """
    own = settings.layout.mlflow_database
    if own in _made or not is_own(settings):
        yield
        return
    begun = settings.layout.mlflow_begun
    with alone(settings):
        if begun.is_file():  # killed, or out of space, before the last table: nothing is in it yet
            own.unlink(missing_ok=True)
        if is_empty(own):
            begun.touch()
        yield
        begun.unlink(missing_ok=True)
    _made.add(own)


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Hold the lock under which the tables of the home's database are made, copied and upgraded.

    Raises MLflowUnreachable if another process takes too long.
    """
    own = settings.layout.mlflow_database
    own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        held = FileLock(settings.layout.mlflow_lock).acquire(timeout=PATIENCE)
    except Timeout as error:
        raise MLflowUnreachable(
            f"another command has been creating or upgrading {own} for {PATIENCE:g} s",
            hint="end it, then run this again",
        ) from error
    with held:
        yield


def paged(search: "Callable[[str | None], PagedList[Any]]") -> Iterator[Any]:
    """Everything that a search of MLflow finds, which it answers a page at a time; `search` takes the page's token."""
    token: str | None = None
    while token != "":
        page = search(token)
        yield from page
        token = page.token or ""


def experiments(client: "MlflowClient", settings: Settings, *, deleted: bool = False) -> list[str]:
    """The ids of our experiments; with `deleted`, also of deleted ones, whose files MLflow keeps."""
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    ours = f"tags.`{NAMESPACE}` = '{settings.namespace}'"
    found = paged(lambda token: client.search_experiments(view, PAGE, ours, page_token=token))
    return [str(one.experiment_id) for one in found]


def is_empty(database: Path) -> bool:
    """Whether a SQLite database is empty or does not exist."""
    return not database.exists() or (database.is_file() and not database.stat().st_size)


def experiment_of(client: "MlflowClient", settings: Settings, line: str) -> str:
    """The id of the line's experiment; creates it if needed. Raises NameTaken if it is not ours."""
    name = f"{settings.namespace}.{line}"
    tags = {NAMESPACE: settings.namespace, LINE: line}
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifact_location(settings, name), tags=tags))
    if not tags.items() <= found.tags.items():
        raise NameTaken(
            f"MLflow has an experiment {name} that this tool did not create",
            hint="set BACKPROPAGATE_NAMESPACE to another name",
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def artifact_location(settings: Settings, name: str) -> str | None:
    """Where an experiment keeps artifacts: in the home; None lets a server decide.

    For a database, MLflow's default would be the current directory.
    """
    if urlsplit(tracking_uri(settings)).scheme in ("http", "https"):
        return None
    return (settings.layout.mlflow_artifacts / name).as_uri()
