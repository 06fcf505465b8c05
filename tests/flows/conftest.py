"""A real Prefect server for the whole session, a home for each test, a base for all."""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.cli.console import OURS
from tests.backprop_core import nano


@pytest.fixture(autouse=True)
def no_address_of_an_earlier_test() -> None:
    """A command that was called in this process has named its temporary server, for itself alone.

    Prefect sends a process's events and logs, which tell of task runs, to the server that was there first.
    """
    if os.environ.pop("PREFECT_API_URL", None):
        os.environ.pop("PREFECT_API_AUTH_STRING", None)
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(at_exit=False)


@pytest.fixture(scope="session")
def prefect():
    """Prefect's own temporary server and database. No flow run waits a second for the end of its heartbeats."""
    at_once = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with prefect_test_harness(server_startup_timeout=600), temporary_settings(at_once):
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A two-layer model."""
    return nano.build(tmp_path_factory.mktemp("base"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> list[str]:
    """Three small datasets."""
    folder = tmp_path_factory.mktemp("data")
    files = [folder / f"task{number}.jsonl" for number in range(3)]
    for number, file in enumerate(files):
        file.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(40, seed=number)))
    return [str(file) for file in files]


@pytest.fixture
def prefect_home(prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of Prefect's with a copy of the session's database: an empty one takes seconds to make."""
    place = tmp_path / "prefect"
    place.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(place))
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL")
    url = get_current_settings().server.database.connection_url
    assert url
    original = sqlite3.connect(url.get_secret_value().partition("///")[2])
    with closing(original) as source, closing(sqlite3.connect(place / "prefect.db")) as copy:
        source.backup(copy)


class Kept(logging.Handler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def page() -> Iterator[list[str]]:
    """What Prefect sends to the pages of flow runs."""
    logger, kept = logging.getLogger("prefect.flow_runs"), Kept()
    level = logger.level
    logger.addHandler(kept)
    logger.setLevel("INFO")
    yield kept.said
    logger.removeHandler(kept)
    logger.setLevel(level)


@pytest.fixture
def task_names() -> Iterator[set[str]]:
    """The names of the task runs that Prefect logs. Its server hears of task runs by events, minutes later if busy."""
    logger, found = logging.getLogger("prefect.task_runs"), set[str]()

    def note(record: logging.LogRecord) -> bool:
        found.add(record.__dict__["task_run_name"])
        return True

    level = logger.level
    logger.addFilter(note)
    logger.setLevel("INFO")
    yield found
    logger.removeFilter(note)
    logger.setLevel(level)


@pytest.fixture
def same_logging() -> Iterator[None]:
    """The loggers are afterwards what they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(False)
