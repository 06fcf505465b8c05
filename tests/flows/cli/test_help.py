"""The help of every verb: it fits a screen, and its example works."""

import hashlib
import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from flows.cli import main
from flows.cli.usage_errors import example_of
from flows.cli.verb_tables import GROUPS, verbs
from tests.flows.cli.test_documents import BASE, place

assert place  # the fixture: a home with a line, two runs, and rows
Capture = pytest.CaptureFixture[str]
LINES, COLUMNS = 54, 80  # a terminal as high as a screen of 1080 pixels, at 20 a line
ALL = [*verbs(), *(f"{name} {verb}" for name, group in GROUPS.items() for verb in group.verbs)]
PARSED = {  # what an example would need, which is not here: only that its words are taken is checked
    **dict.fromkeys(("demo", "resume", "replay", "promote", "evaluate", "bench", "export", "generate"), "a training"),
    **dict.fromkeys(("chat", "compare", "rebase", "retrain"), "a model, or a line that was trained"),
    **dict.fromkeys(("push", "release", "rollback", "serve", "ui", "deploy", "watch"), "a server"),
    **dict.fromkeys(("data preview", "data restore", "data forget", "users revoke", "store keep"), "an id or a base"),
    **dict.fromkeys(("store copy", "store sync"), "another store"),
    "store check": "a store with all its rows",
}
PLANNED = ("train", "multi-run", "sweep")  # up to the door of the training: with --plan
FILES = ("support.jsonl", "night.jsonl", "april.jsonl", "may.jsonl")


@pytest.mark.parametrize("verb", ["", *ALL])
def test_it_fits_a_screen(verb: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 54 lines of 80 columns, no letter cut, and the example last."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert main.main([*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS and "…" not in "".join(lines)
    if verb:
        shown = " ".join(" ".join(lines).split())
        assert shown.endswith(f"Example: {example_of(verb)}")


@pytest.mark.usefixtures("same_logging")
def test_the_examples_work(place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example that needs no training and no server is done, in the order of the verbs; a user is removed last."""
    monkeypatch.setenv("BACKPROPAGATE_MODEL__NAME", str(BASE))
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__DEVICE", "cpu")
    for name in FILES:
        texts = [hashlib.sha256(f"{name} {number}".encode()).hexdigest() for number in range(60)]
        rows = [{"prompt": " ".join(text[:32]), "completion": " ".join(text[32:])} for text in texts]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a long password\n")))
    assert main.main(["users", "add", "nightly"]) == 0
    failed = []
    for verb in sorted((verb for verb in ALL if verb not in PARSED), key=lambda verb: verb == "users remove"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a long password\n")))
        words = shlex.split((example_of(verb) or "").replace("RUN_ID", "a1a1"))[1:]
        if main.main([*words, *(["--plan"] if verb in PLANNED else [])]):
            failed.append(f"{words}: {capsys.readouterr().err}")
    assert failed == []
