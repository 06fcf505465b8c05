"""The history as rows for other programs."""

import csv
import io

import pytest

from tasks.runs.run_table import as_csv
from tasks.tracking import ExportedRun

PLAIN = ["0.5", "-0.5", "+3", "-1e-4", "plain", "a=b", "a-b", "", "'quoted", "-inf"]
FORMULAS = ["=1+1", "=HYPERLINK(1)", "+x", "-x", "@SUM(A1)", "\t=1+1", "\r=1+1", "-1+2", "--1", "=", "-"]


def exported(text: str) -> ExportedRun:
    """A run with this text wherever a person can write one."""
    return {
        "run_id": "a1" * 16,
        "line": "support",
        "status": "finished",
        "started": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
        "datasets": [],
        "average": -0.5,
        "error": text,
        "mlflow_run_id": "m",
        "params": {"export.system": text},
        "metrics": {"loss": -1.5},
    }


def cells(text: str) -> dict[str, str]:
    [row] = csv.DictReader(io.StringIO(as_csv([exported(text)]).decode(), newline=""))
    return row


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    """A spreadsheet takes a text that begins like a formula as the text that it is."""
    row = cells(text)
    assert row["error"] == row["param.export.system"] == f"'{text}"


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_and_numbers_stay(text: str) -> None:
    """A number is a number, negative ones too, also as the value of a parameter."""
    row = cells(text)
    assert row["error"] == row["param.export.system"] == text
    assert (row["metric.loss"], row["average"]) == ("-1.5", "-0.5")
