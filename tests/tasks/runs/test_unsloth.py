"""Unsloth in an environment of its own: refused before any work where it is not there, never replaced in silence."""

import sys
from pathlib import Path

import pytest

from backprop_core.errors import UnslothNotAvailable
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import DatasetSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs import resolve
from tasks.runs.worker_process import interpreter

SPEC = RunSpec(datasets=[DatasetSpec(path="rows.jsonl")], training=TrainSpec(backend="unsloth"))


@pytest.mark.parametrize(
    "python, said",
    [(None, "is not set"), ("/nowhere/python", "No such file"), (sys.executable, "No module named 'unsloth'")],
)
def test_refused_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, said: str) -> None:
    """No interpreter, one that is not there, one without Unsloth: coded, with what to do, before data and base."""
    if python:
        monkeypatch.setenv("BACKPROPAGATE_UNSLOTH_PYTHON", python)
    with pytest.raises(UnslothNotAvailable, match=said) as caught:
        resolve.prepare("train", SPEC, Store(tmp_path))
    assert "pip install unsloth" in caught.value.hint


def test_its_interpreter_is_the_workers(tmp_path: Path) -> None:
    """Where it can be imported, the worker that trains runs there, and every other one in its own place."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    config = Settings(unsloth_python=python)
    assert interpreter(config, "unsloth") == str(python)
    assert interpreter(config, "transformers") is None
