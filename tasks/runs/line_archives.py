"""`backprop line export`, `line import`: a line of this home in one file."""

from pathlib import Path

from backprop_core.lines import line_archive
from backprop_core.lines.line_archive import LineFile, Written
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import Act
from backprop_core.store.artifacts import Store

__all__ = ["LineFile", "head", "read", "write"]


def write(line: str, job: Path | None, file: Path, config: Settings) -> Written:
    """Write a line into a file. Raises RunUnknown, ArtifactDamaged, PlaceUnusable."""
    store = Store(config.store_path)
    try:
        return line_archive.write(line, job, file, store)
    finally:
        store.close()


def head(file: Path) -> LineFile:
    """What is in such a file. Raises InputNotFound, InputValidationFailed."""
    with line_archive.opened(file) as (_, found):
        return found


def read(file: Path, to: str, act: Act, config: Settings) -> str | None:
    """Read a line under the name `to`; returns the text of its job file, if there is one.

    `act` says who reads it, and forces a champion that did not pass its gate. Raises ConfigInvalid, RunActive,
    InputNotFound, InputValidationFailed, NotGated.
    """
    store = Store(config.store_path)
    try:
        with line_archive.opened(file) as (archive, found):
            reading = line_archive.Import(file, archive, found, to, store)
            reading.carry_out({"stage": "line import", "line": found.line, "by": act.by}, act)
            return reading.job
    finally:
        store.close()
