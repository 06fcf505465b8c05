"""Files that only this user of the machine may read: written whole, or line by line."""

import os
import uuid
from io import TextIOWrapper
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path

from filelock import FileLock

MODE = 0o600


def opened(path: str, flags: int) -> int:
    return os.open(path, flags, MODE)


def replace(path: Path, text: str) -> None:
    """Write beside, fsync, rename: `path` holds the old text or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "x", encoding="utf-8", newline="\n", opener=opened) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lines(RotatingFileHandler):
    """Appends durable lines to a file; older ones are in `.1`, `.2`, …"""

    def _open(self) -> TextIOWrapper:
        with open(self.baseFilename, "ab+", opener=opened) as before:
            if before.tell():
                before.seek(-1, os.SEEK_END)
                if before.read(1) != b"\n":  # a line that a crash has cut stays alone
                    before.write(b"\n")
        return open(self.baseFilename, "a", encoding="utf-8", newline="\n")

    def flush(self) -> None:
        super().flush()
        if self.stream:
            os.fsync(self.stream.fileno())

    def handleError(self, record: LogRecord) -> None:
        raise  # called from an except block


def append(path: Path, lock: Path, line: str, *, largest: int, older: int) -> None:
    """Append a line, whatever other processes append. Raises OSError."""
    with FileLock(lock, mode=MODE):
        lines = Lines(path, maxBytes=largest, backupCount=older, encoding="utf-8", delay=True)
        try:
            lines.emit(makeLogRecord({"msg": "%s", "args": (line,)}))
        finally:
            lines.close()
