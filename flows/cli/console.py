"""Output on stderr: logs, a progress bar, errors in two lines."""

import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.runtime import json_lines
from backprop_core.runtime.log_lines import formatter
from backprop_core.runtime.redaction import blank_logs, blank_secrets

if TYPE_CHECKING:
    from rich.console import Console

    from backprop_core.runtime.settings import Settings
    from tasks.runs.progress import Progress

OURS = ("backprop_core", "tasks", "flows")
WORTH_A_LINE = 2.0  # seconds: a stage that takes longer leaves a line on the terminal
EVERY = 30.0  # seconds between two lines without a terminal


def one_line(text: str) -> str:
    """`text` without secrets, line breaks and terminal escapes."""
    words = blank_secrets(text).split()
    return " ".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in word) for word in words)


def error_text(error: BackpropError) -> str:
    """An error in two lines: its code and message, then how to fix it."""
    return f"[{error.code}] {one_line(error.message)}\n{one_line(error.hint)}"


def say_error(error: BackpropError) -> None:
    """Print an error to stderr: two lines, or one JSON document."""
    if isinstance(sys.stderr, json_lines.JsonLines):
        told = {"code": error.code, "hint": one_line(error.hint), "run_id": error.run_id}
        sys.stderr.document(one_line(error.message), level="error", logger="backprop", **told)
    else:
        say(error_text(error))


def trace_text(error: BaseException) -> str:
    """An error's traceback without secrets."""
    return blank_secrets("".join(traceback.format_exception(error)))


def say(text: str) -> None:
    """Print to stderr, above the bar if there is one."""
    print(text, file=sys.stderr, flush=True)


def stderr_console() -> "Console":
    """The console of progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the current stderr, which is above the bar while there is one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # a property where the base class has an attribute
        return json_lines.plain_stderr()


def is_for_people(record: logging.LogRecord) -> bool:
    """Whether a record is ours: the logs of Prefect and other libraries are for developers."""
    return not record.name.startswith(("prefect", "py.warnings", "asyncio"))


def configure_logging(config: "Settings", *, verbose: bool) -> None:
    """Send logs to stderr, and to the log file if one is set; secrets are blanked in both.

    Raises ConfigInvalid if the file cannot be written.
    """
    blank_logs()
    if config.log_json:
        json_lines.use()
    screen: logging.Handler = ToStderr()
    if not verbose:
        screen.addFilter(is_for_people)
    handlers = [screen]
    if config.log_file:
        handlers.append(to_file(config.log_file.expanduser()))
    for handler in handlers:
        handler.setFormatter(formatter(as_json=config.log_json, colors=handler is screen and sys.stderr.isatty()))
    logging.captureWarnings(True)
    logging.basicConfig(handlers=handlers, level=logging.WARNING, force=True)
    for name in OURS:
        logging.getLogger(name).setLevel("DEBUG" if verbose else config.log_level.upper())


def to_file(path: Path) -> logging.Handler:
    """A handler for a file. Raises ConfigInvalid if it cannot be opened."""
    try:
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(
            f"the log file {path} cannot be written: {error.strerror}",
            hint="set BACKPROPAGATE_LOG_FILE to a file in a directory that exists and is writable",
        ) from error


class Stage:
    """The current stage and its last reported progress."""

    def __init__(self, name: str) -> None:
        self.name, self.done, self.total = name, 0, 0
        self.values: dict[str, float] = {}
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def count(self) -> str:
        """`12/60 loss=1.234`: the progress, and the first metric."""
        parts = f"{self.done}/{self.total}" if self.total else ""
        figures = [f"{name}={value:.4g}" for name, value in self.values.items()]
        return " ".join(filter(None, [parts, *figures[:1]]))

    def text(self) -> str:
        """`train 12/60 loss=1.234 (4.2 s)`"""
        return " ".join(filter(None, [self.name, self.count(), f"({self.seconds:.1f} s)"]))


class Bar:
    """Shows the progress of a run: a bar on a terminal, regular lines elsewhere. Call it with each `Progress`."""

    def __init__(self, *, every: float = EVERY) -> None:
        self._stage = Stage("starting")
        self._every = every
        self._ended = threading.Event()
        self._show: Lines | Drawing = Drawing() if stderr_console().is_terminal else Lines()

    def __enter__(self) -> Self:
        self._show.update(self._stage)
        self._timer = threading.Thread(target=self._now_and_then, daemon=True)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._timer.join()
        self._show.leave(self._stage)
        self._show.close()

    def __call__(self, event: "Progress") -> None:
        if event.stage != self._stage.name or event.done < self._stage.done:
            self._show.leave(self._stage)
            self._stage = Stage(event.stage)
        self._stage.done, self._stage.total, self._stage.values = event.done, event.total, event.values
        self._show.update(self._stage)

    def _now_and_then(self) -> None:
        while not self._ended.wait(self._every):
            self._show.tick(self._stage)


class Lines:
    """Without a terminal: a line at regular intervals."""

    def update(self, stage: Stage) -> None:
        pass

    def tick(self, stage: Stage) -> None:
        say(stage.text())

    def leave(self, stage: Stage) -> None:
        pass

    def close(self) -> None:
        pass


class Drawing:
    """On a terminal: a bar for the current stage, a line for each stage that took long."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.fields[count]}"),
            console=stderr_console(),
            transient=True,
            redirect_stdout=False,
        )
        self._task = self._bars.add_task("", total=None, count="")
        self._bars.start()

    def update(self, stage: Stage) -> None:
        from tasks.runs.progress import QUESTION

        if stage.name == QUESTION:
            return self._bars.stop()
        self._bars.start()
        self._bars.update(
            self._task,
            description=stage.name,
            completed=stage.done,
            total=stage.total or None,
            count=stage.count(),
        )

    def tick(self, stage: Stage) -> None:
        pass

    def leave(self, stage: Stage) -> None:
        if stage.seconds > WORTH_A_LINE and stage.name != "starting":
            say(stage.text())
        self._bars.reset(self._task, total=None)

    def close(self) -> None:
        self._bars.stop()
