"""The log of a run: what it says, a line of JSON each, in the run's directory. MLflow gets the last lines at its end.

It has what the screen leaves out, such as Prefect's lines on each stage. Losing it costs nothing else.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pydantic import JsonValue, ValidationError

from backprop_core.errors import BackpropError, RefAmbiguous, RunUnknown
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.layout import StoreLayout
from tasks import tracking

FLOW_RUNS = "prefect.flow_runs"  # Prefect's logger of flow runs, whose records do not reach the root
MOST = 5_000_000  # bytes of one log
SENT = 2000  # lines that MLflow gets, the last ones
LOOK = 1.0  # seconds between two looks at the log of a run at work


class LogLine(Record):
    """One line of the log of a run."""

    time: datetime
    level: str
    logger: str
    message: str


class RunLog(logging.Handler):
    """Appends records to the log of a run, without secrets, until it is too long or cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self._file: TextIO | None = path.open("a", encoding="utf-8", errors="replace", buffering=1)
        self._last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record is self._last:  # it came from both loggers
            return
        self._last = record
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC)
        self.write(at, record.levelname.lower(), record.name, message)

    def write(self, at: datetime, level: str, logger: str, message: str) -> None:
        """Append one line."""
        if self._file is None:
            return
        text = blank_secrets(message).encode(errors="replace").decode()
        line = LogLine(time=at, level=level, logger=logger, message=text)
        try:
            self._file.write(line.model_dump_json() + "\n")
            if self._file.tell() > MOST:
                self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
        super().close()


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Keep what is logged within the block, and the error that ends it."""
    try:
        handler = RunLog(path)
    except OSError:
        yield
        return
    loggers = [logging.getLogger(), logging.getLogger(FLOW_RUNS)]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        handler.write(datetime.now(UTC), "error", __name__, in_a_line(error))
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def in_a_line(error: BaseException) -> str:
    """What ended a run."""
    return f"[{error.code}] {error.message}" if isinstance(error, BackpropError) else f"{type(error).__name__}: {error}"


def read(path: Path, offset: int = 0) -> tuple[list[LogLine], int]:
    """The complete lines of a log from an offset on, and the offset behind them."""
    lines = []
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        for text in file:
            if not text.endswith(b"\n"):
                break
            offset += len(text)
            with suppress(ValidationError):
                lines.append(LogLine.model_validate_json(text))
    return lines, offset


def to_send(path: Path) -> list[JsonValue]:
    """The last lines of a log, for MLflow."""
    return [line.model_dump(mode="json") for line in read(path)[0][-SENT:]]


def path_of(prefix: str, config: Settings) -> Path | None:
    """The log of the one run on this machine whose run_id begins so; None if there is none. Raises RefAmbiguous."""
    letters = "".join(filter(str.isalnum, prefix))
    found = sorted(StoreLayout(config.store_path).logged(letters or "-"), key=lambda run: run.run_id)
    if len(found) > 1:
        raise RefAmbiguous(f"{prefix} could be {', '.join(run.run_id[:12] for run in found)}", hint="use more digits")
    return found[0].log if found else None


def lines_of(prefix: str, config: Settings) -> list[LogLine]:
    """The log of a run, from this machine or from MLflow.

    Raises RunUnknown, RefAmbiguous, MLflowUnreachable.
    """
    if path := path_of(prefix, config):
        return read(path)[0]
    run_id, sent = tracking.document_of(config, prefix, "log.json")
    if path := path_of(run_id, config):  # it was named by its id in MLflow, or by that of a LoRA run in it
        return read(path)[0]
    if sent is None:
        raise RunUnknown(
            f"no log is kept of run {run_id}", hint=f"what it did: backprop show-run {run_id[:12]}; newer runs keep one"
        )
    return [LogLine.model_validate(line) for line in sent]


def followed(prefix: str, config: Settings) -> Iterator[LogLine]:
    """The lines of a run's log as they come, until it has ended. Raises RunUnknown, RefAmbiguous, MLflowUnreachable."""
    offset, path = 0, None
    while True:
        running = tracking.status_of(config, prefix) == "running"
        path = path or path_of(prefix, config)
        if path:
            lines, offset = read(path, offset)
            yield from lines
        if not running:
            return
        time.sleep(LOOK)
