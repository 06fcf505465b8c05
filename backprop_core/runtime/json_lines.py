"""stderr as lines of JSON: what is printed there becomes a document as a log record does."""

import io
import json
import os
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from backprop_core.runtime import log_context
from backprop_core.runtime.redaction import blank_secrets

VARIABLE = "BACKPROPAGATE_LOG_JSON"
TRUE = ("1", "true", "t", "yes", "y", "on")  # as pydantic reads a setting


class JsonLines(io.TextIOBase):
    """Writes each line that is printed as a JSON document. Log handlers write their documents to `plain`."""

    def __init__(self, plain: TextIO) -> None:
        self.plain = plain
        self._begun = ""
        self._guard = threading.RLock()

    def write(self, text: str) -> int:
        with self._guard:
            *lines, self._begun = (self._begun + text).replace("\r", "\n").split("\n")
            for line in filter(str.strip, lines):
                self.document(line.rstrip())
        return len(text)

    def document(self, event: str, *, level: str = "info", logger: str = "stderr", **more: Any) -> None:
        """Write one document."""
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        told = {"event": blank_secrets(event), **log_context.current(), **more}
        line = json.dumps({**told, "logger": logger, "level": level, "timestamp": time}, ensure_ascii=False)
        self.plain.write(f"{line}\n")
        self.plain.flush()

    def flush(self) -> None:
        self.plain.flush()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.plain.fileno()


def is_wanted() -> bool:
    """Whether the environment asks for JSON; a `.env` file is read with the settings."""
    return os.environ.get(VARIABLE, "").strip().lower() in TRUE


def use() -> None:
    """Write stderr as JSON from now on."""
    if not isinstance(sys.stderr, JsonLines):
        sys.stderr = JsonLines(sys.stderr)


def plain_stderr() -> TextIO:
    """Where documents are written."""
    return sys.stderr.plain if isinstance(sys.stderr, JsonLines) else sys.stderr
