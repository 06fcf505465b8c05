"""The history as rows for other programs: JSON lines, CSV, Parquet."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from backprop_core.errors import PlaceUnusable
from backprop_core.store.artifacts import write_atomic
from tasks.tracking import ExportedRun, RunSummary

Format = Literal["jsonl", "csv", "parquet"]
Row = dict[str, Any]


def save(path: Path, content: bytes) -> None:
    """Write the file, whole or not at all. Raises PlaceUnusable."""
    try:
        write_atomic(path, content)
    except OSError as error:
        raise PlaceUnusable(
            f"{path} cannot be written: {error.strerror}", hint="choose another file with --output"
        ) from error


def as_jsonl(runs: Iterable[ExportedRun]) -> bytes:
    """A line of JSON each."""
    return "".join(json.dumps(run, ensure_ascii=False) + "\n" for run in runs).encode()


def as_csv(runs: Sequence[ExportedRun]) -> bytes:
    """A row each, with a column for every parameter and metric that any of them has. [RFC 4180]"""
    rows, file = list(map(flat, runs)), io.StringIO()
    writer = csv.DictWriter(file, columns(rows), restval="")  # lines end with CR LF, so either is quoted in a cell
    writer.writeheader()
    writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)
    return file.getvalue().encode()


FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_text(value: Any) -> Any:
    """A cell that a spreadsheet takes as text, not as a formula; a number stays one. [OWASP, CSV injection]"""
    if not isinstance(value, str) or not value.startswith(FORMULA) or is_number(value):
        return value
    return f"'{value}"


def is_number(text: str) -> bool:
    """Whether a text is a number, such as the value of a parameter."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_parquet(runs: Sequence[ExportedRun]) -> bytes:
    """The same columns, with their types."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    rows = list(map(flat, runs))
    names = columns(rows)
    types = {name: pa.float64() if name in NUMBERS or name.startswith("metric.") else pa.string() for name in names}
    made = {name: pa.array([row.get(name) for row in rows], types[name]) for name in names}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(made), sink)
    return bytes(sink.getvalue())


WRITERS = {"jsonl": as_jsonl, "csv": as_csv, "parquet": as_parquet}
FIRST = [*RunSummary.__annotations__, "mlflow_run_id"]
NUMBERS = ("seconds", "average")


def flat(run: ExportedRun) -> Row:
    """A run as one row: `param.NAME` and `metric.NAME` beside its fields, the datasets as a JSON list."""
    fixed = {name: value for name, value in run.items() if name not in ("params", "metrics")}
    params = {f"param.{name}": value for name, value in run["params"].items()}
    metrics = {f"metric.{name}": value for name, value in run["metrics"].items()}
    return {**fixed, "datasets": json.dumps(run["datasets"], ensure_ascii=False), **params, **metrics}


def columns(rows: Iterable[Row]) -> list[str]:
    """The fields first, then parameters and metrics by name."""
    more = sorted({name for row in rows for name in row} - set(FIRST))
    return [*FIRST, *sorted(more, key=lambda name: not name.startswith("param."))]
