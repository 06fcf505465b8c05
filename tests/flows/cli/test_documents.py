"""Every verb's `--json` has a schema in docs/schemas, and what it prints is what the schema says."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from backprop_core.runtime.settings import settings
from flows.cli import documents, main
from tests import tiny_line
from tests.flows.cli.test_history_verbs import record

Capture = pytest.CaptureFixture[str]
FOLDER = Path(__file__).parents[3] / "docs" / "schemas"
BASE = Path(__file__).parents[3] / "examples" / "base"
REAL = (  # commands of a small home, each after the ones before; verbs that need a server or a training are not here
    "presets",
    "info",
    "info --error-codes",
    "doctor",
    "completion fish",
    "init other",
    "estimate-vram --model qwen2.5-7b --vram 16GB",
    "list-runs",
    "show-run a1",
    "diff-runs a1 b2",
    "logs a1",
    "export-runs --output runs.jsonl",
    "sync",
    "lines",
    "show-line support",
    "store keep support",
    "store keep",
    "store keep support --undo",
    "store check",
    "store check --repair",
    "store prune --dry-run",
    "data report rows.jsonl --model BASE",
    "data report rows.jsonl --model BASE --fail-on duplicates>5%",
    "data preview rows.jsonl --model BASE",
    "data put rows.jsonl",
    "data split rows.jsonl --heldout held.jsonl",
    "data trace hello",
    "data restore",
    "data forget rows.jsonl --plan",
    "line export support --output support.line",
    "line import support.line --to helpdesk",
    "line rename helpdesk desk --dry-run",
    "line rename helpdesk desk",
    "line delete desk --dry-run",
    "line delete desk --yes",
    "users add ann",
    "users list",
    "users role ann act",
    "users token ann",
    "users password ann",
    "users audit",
    "users remove ann",
    "train --plan --data rows.jsonl --model BASE --set training.device=cpu",
    "multi-run --plan --data rows.jsonl --model BASE --set training.device=cpu",
)
FAIL = ("train", "trian", "show-run ffff", "export-runs", "data report nothing.jsonl", "line import nothing", "push x")


def schema_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name.replace(' ', '-')}.json").read_text(encoding="utf-8"))
    return found


def valid(document: Any, name: str) -> None:
    """Raise ValidationError unless a document is what the schema of a verb says."""
    Draft202012Validator(schema_of(name)).validate(document)


def verb_of(command: str) -> str:
    known = set(documents.with_documents())
    words = command.split()
    return " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a line, two runs, and rows."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("work")
        patch.setenv("BACKPROPAGATE_HOME", str(folder / "home"))
        patch.chdir(folder)
        rows = [{"prompt": f"hello number {n}", "completion": f"answer {n}"} for n in range(40)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tiny_line.write(settings())
        tiny_line.passed(settings().store_path)
        for run_id, average in (("a1" * 16, 0.5), ("b2" * 16, 0.9)):
            record(run_id, average)
        yield folder


def test_the_schemas_are_current() -> None:
    """docs/schemas is what the code says now, and has every verb that prints a document; no other."""
    made = {f"{name}.json": documents.text(schema) for name, schema in documents.schemas().items()}
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")} == made
    assert set(documents.documents()) == set(documents.with_documents())
    for schema in documents.schemas().values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.usefixtures("same_logging")
def test_real_output_is_what_the_schema_says(place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command prints one document, which its schema describes; a changed one it does not."""
    wrong = []
    for command in REAL:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a long password\n")))
        main.main([word.replace("BASE", str(BASE)) for word in command.split()] + ["--json"])
        out, err = capsys.readouterr()
        try:
            valid(json.loads(out), verb_of(command))
        except ValidationError as error:
            wrong.append(f"{command}: {error.message[:500]} {out[:300]} {err}")
    assert wrong == []
    with pytest.raises(ValidationError):
        valid({"run_id": "x"}, "list-runs")


@pytest.mark.usefixtures("same_logging")
@pytest.mark.parametrize("command", FAIL)
def test_failures_have_one_schema(place: Path, capsys: Capture, command: str) -> None:
    """Whatever fails: the document of a failure."""
    assert main.main([*command.split(), "--json"]) == 1
    valid(json.loads(capsys.readouterr().out), "failure")
