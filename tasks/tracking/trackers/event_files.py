"""Writes a run as TensorBoard's event files: one file a run, in a folder of its own below those of its line.

The note has the size of each file. Before more is written, a file is cut to it: what a killed process wrote after its
last note is written again, and stands there once.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from backprop_core.runtime.settings import Settings
from tasks.tracking.journal_lines import AnyLine, Ended, Measured, Started, Tagged
from tasks.tracking.trackers.forwarding import State
from tasks.tracking.trackers.run_texts import labels, run_name

VERSION = "brain.Event:2"


class EventFiles:
    """The event files of a run and its child runs."""

    def __init__(self, settings: Settings, run_id: str, state: State) -> None:
        self._settings, self._root = settings, run_id
        self._files: dict[str, str] = dict(state.get("files", {}))  # run -> file
        self._sizes: dict[str, int] = dict(state.get("sizes", {}))

    def write(self, lines: Sequence[AnyLine]) -> None:
        for run in dict.fromkeys(line.run for line in lines):
            own = [line for line in lines if line.run == run]
            self._name(run, own)
            if run in self._files:
                self._sizes[run] = append(Path(self._files[run]), self._sizes.get(run, 0), own)

    def settle(self, *, over: bool) -> State:
        return {"files": self._files, "sizes": self._sizes}

    def _name(self, run: str, lines: Sequence[AnyLine]) -> None:
        """Choose the file of a run when it starts for the first time."""
        first = next((line for line in lines if isinstance(line, Started)), None)
        if run in self._files or first is None:
            return
        folder = self._settings.layout.tensorboard / first.line / run_name(self._settings, self._root)
        if first.parent:
            folder /= f"{re.sub(r'[^A-Za-z0-9._-]+', '_', first.name)}-{run[:6]}"
        self._files[run] = str(folder / f"events.out.tfevents.{first.time // 1000}.{run[:8]}")


def append(path: Path, size: int, lines: Sequence[AnyLine]) -> int:
    """Write lines behind the first `size` bytes of an event file; returns its new size."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(size)
        file.seek(min(size, file.seek(0, os.SEEK_END)))
        writer = RecordWriter(file)
        if not file.tell():
            writer.write(Event(wall_time=lines[0].time / 1000, file_version=VERSION).SerializeToString())
        for line in lines:
            for summary, step in summaries(line):
                event = Event(wall_time=line.time / 1000, step=step, summary=summary)
                writer.write(event.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def summaries(line: AnyLine) -> Iterator[tuple[Summary, int]]:
    """What TensorBoard shows of a line, and at which step."""
    match line:
        case Measured():
            values = [Summary.Value(tag=name, simple_value=value) for name, value in line.values.items()]
            yield Summary(value=values), line.step
        case Started():
            yield from table("run", {"run_id": line.run, "line": line.line, **line.params})
            yield from table("labels", labels(line.tags))
        case Tagged():
            yield from table("labels", labels(line.tags))
        case Ended():
            yield from table("end", {"status": line.status, **({"error": line.error.code} if line.error else {})})


def table(name: str, texts: dict[str, str]) -> Iterator[tuple[Summary, int]]:
    """Texts as a table on the page of texts."""
    if texts:
        rows = [f"| {key} | {text} |" for key, text in texts.items()]
        yield text_pb(name, "\n".join(["| | |", "| --- | --- |", *rows])), 0


def open_stream(settings: Settings, run_id: str, state: State) -> EventFiles:
    return EventFiles(settings, run_id, state)
