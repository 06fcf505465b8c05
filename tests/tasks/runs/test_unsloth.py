"""Unsloth in an environment of its own: refused before any work where it is not there, never replaced in silence."""

import sys
from pathlib import Path

import pytest

from backprop_core.errors import UnslothNotAvailable, UnslothTooOld
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import DatasetSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs import resolve
from tasks.runs.worker_process import interpreter

SPEC = RunSpec(datasets=[DatasetSpec(path="rows.jsonl")], training=TrainSpec(backend="unsloth"))


def installed(folder: Path, version: str, body: str = "") -> Settings:
    """Settings with an interpreter that has this release of Unsloth, as pip installs it."""
    (folder / f"unsloth-{version}.dist-info").mkdir()
    (folder / f"unsloth-{version}.dist-info" / "METADATA").write_text(f"Name: unsloth\nVersion: {version}\n")
    (folder / "unsloth.py").write_text(body)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return Settings(unsloth_python=python)


@pytest.mark.parametrize(
    "python, said", [(None, "is not set"), ("/nowhere/python", "No such file"), (sys.executable, "metadata was found")]
)
def test_refused_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, said: str) -> None:
    """No interpreter, one that is not there, one without Unsloth: coded, with what to do, before data and base."""
    if python:
        monkeypatch.setenv("BACKPROPAGATE_UNSLOTH_PYTHON", python)
    with pytest.raises(UnslothNotAvailable, match=said) as caught:
        resolve.prepare("train", SPEC, Store(tmp_path))
    assert "pip install unsloth" in caught.value.hint


def test_a_release_that_cannot_be_imported(tmp_path: Path) -> None:
    """Its own reason is the message."""
    config = installed(tmp_path, "2026.10.9", "print('a banner'); raise NotImplementedError('You need a GPU.')")
    with pytest.raises(UnslothNotAvailable, match=r"NotImplementedError: You need a GPU\."):
        interpreter(config, "unsloth")


@pytest.mark.parametrize("version", ["2026.9.7", "2026.9.13", "2025.12.10"])
def test_a_release_that_trains_wrongly_is_refused(tmp_path: Path, version: str) -> None:
    """By its version, before it is imported: its attention is not causal as we call it."""
    with pytest.raises(UnslothTooOld, match=f"has unsloth {version}; 2026.9.14 or newer") as caught:
        interpreter(installed(tmp_path, version, "raise ImportError"), "unsloth")
    assert "pip install --upgrade unsloth" in caught.value.hint


@pytest.mark.parametrize("version", ["2026.9.14", "2026.10.9", "2027.1.1.post1"])
def test_its_interpreter_is_the_workers(tmp_path: Path, version: str) -> None:
    """Where it can be imported, the worker that trains runs there, and every other one in its own place."""
    config = installed(tmp_path, version, "print('a banner')")
    assert interpreter(config, "unsloth") == str(config.unsloth_python)
    assert interpreter(config, "transformers") is None
