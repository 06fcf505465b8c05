"""`backprop data …`: what is printed, where, and with which exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main

ROOT = Path(__file__).parents[3]
BASE = str(ROOT / "examples" / "base")
ORDERS = str(ROOT / "examples" / "data" / "orders.jsonl")
HOSTILE = "\x1b[2J\x1b]0;title\x07<script>alert(1)</script>\u202e"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_logging: None) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(words: list[str], capsys: Capture) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = main.main(words)
    return status, *capsys.readouterr()


def document(words: list[str], capsys: Capture) -> Any:
    status, out, _ = said([*words, "--json"], capsys)
    assert status == 0
    return json.loads(out)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_preview_marks_the_labels_without_colours(place: Path, capsys: Capture) -> None:
    """In a pipe the label tokens stand between marks, and a mark says where the maximum length cuts."""
    data = write(place / "a.jsonl", [chat("the question", "the answer " * 30)])
    status, out, err = said(["data", "preview", data, "--model", BASE, "--max-length", "30"], capsys)
    assert (status, err) == (0, "") and "the question" in out and "⟦the answer" in out and "✂" in out
    [row] = document(["data", "preview", data, "--model", BASE, "--max-length", "30"], capsys)["rows"]
    [example] = row["examples"]
    assert example["tokens"] - 30 == example["cut_tokens"] and f"{example['cut_tokens']} cut" in out


def test_preview_prints_no_terminal_escapes(place: Path, capsys: Capture) -> None:
    """Control characters of a row or of its file's name do not reach the terminal."""
    data = write(place / "a\x1b[31m.jsonl", [chat(HOSTILE, HOSTILE)])
    status, out, err = said(["data", "preview", data, "--model", BASE], capsys)
    assert status == 0 and not {"\x1b", "\x07", "\u202e"} & set(out + err) and "<script>" in out


def test_preview_finds_a_row_by_its_line(place: Path, capsys: Capture) -> None:
    """`--row` is the line in the file, or the row of a JSON array; in a directory that of each file."""
    (place / "rows").mkdir()
    write(place / "rows" / "a.jsonl", [chat(f"q{number}", "a") for number in range(3)])
    (place / "rows" / "b.json").write_text(json.dumps([chat(f"p{number}", "a") for number in range(3)]))
    rows = document(["data", "preview", "rows", "--row", "2", "--model", BASE], capsys)["rows"]
    assert [row["place"] for row in rows] == ["a.jsonl, line 2", "b.json, row 2"]
    assert [span["text"].split("user\n")[1][:2] for row in rows for span in row["examples"][0]["spans"][:1]] == [
        "q1",
        "p1",
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["preview", "gone.jsonl"], "INPUT_NOT_FOUND"),
        (["preview", "empty.jsonl"], "INPUT_NO_ROWS"),
        (["preview", "folder"], "INPUT_NO_ROWS"),
        (["preview", "rows.jsonl", "--row", "99"], "INPUT_NOT_FOUND"),
        (["preview", "rows.jsonl", "--rows", "0"], "CONFIG_INVALID"),
        (["preview", "rows.jsonl", "--max-length", "many"], "CONFIG_INVALID"),
        (["preview", "rows.jsonl", "--model", "/nowhere"], "INPUT_NOT_FOUND"),
        (["report"], "CONFIG_INVALID"),
        (["report", "gone.jsonl"], "INPUT_NOT_FOUND"),
        (["report", "empty.jsonl"], "INPUT_NO_ROWS"),
        (["report", "folder"], "INPUT_NO_ROWS"),
        (["report", "rows.jsonl", "--fail-on", "beauty>5%"], "CONFIG_INVALID"),
        (["report", "rows.jsonl", "--output", "folder"], "CONFIG_PLACE_UNUSABLE"),
    ],
)
def test_wrong_input(words: list[str], code: str, place: Path, capsys: Capture) -> None:
    """Exit 1, nothing on stdout, the code on stderr."""
    (place / "empty.jsonl").touch()
    (place / "folder").mkdir()
    write(place / "rows.jsonl", [chat("a", "b")])
    model = [] if "--model" in words else ["--model", BASE]
    status, out, err = said(["data", *words, *model], capsys)
    assert (status, out) == (1, "") and err.startswith(f"[{code}] ") and len(err.splitlines()) == 2


def test_the_parent_imports_no_torch() -> None:
    """Rows are rendered and tokenized without torch and transformers."""
    words = ["data", "preview", ORDERS, "--model", BASE]
    loaded = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    code = f"import sys; from flows.cli.main import main; main({words}); print({loaded})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ}
    )
    assert done.stdout.splitlines()[-1] == "[]" and "⟦" in done.stdout


def test_report_writes_a_page_and_a_document(place: Path, capsys: Capture) -> None:
    """The page and the JSON document have each dataset; the text says how many rows are usable."""
    data = [write(place / name, [chat("a", "b"), chat("a", "b"), chat("c", "d")]) for name in ("a.jsonl", "b.jsonl")]
    status, out, err = said(["data", "report", *data, "--model", BASE, "--output", "report.html"], capsys)
    assert (status, err) == (0, "") and out.count("2 of 3 rows usable") == 2 and "report.html" in out
    assert Path("report.html").read_text(encoding="utf-8").count("<section>") == 2
    reports = document(["data", "report", *data, "--model", BASE], capsys)["datasets"]
    assert [(one["data"], one["usable"], one["figures"]["duplicates"]) for one in reports] == [
        (path, 2, 1) for path in data
    ]


def test_report_fails_on_a_limit(place: Path, capsys: Capture) -> None:
    """Over a limit it exits with 1 and names the figure; the result and the page are there all the same."""
    data = write(place / "a.jsonl", [chat("a", "b"), chat("a", "b"), chat("c", "d")])
    words = ["data", "report", data, "--model", BASE, "--output", "report.html", "--fail-on", "duplicates>30%"]
    status, out, err = said(words, capsys)
    assert status == 1 and "2 of 3 rows usable" in out and Path("report.html").is_file()
    assert err.startswith("[INPUT_DATA_LIMIT_EXCEEDED] ") and "duplicates is 1 of 3 rows (33.3 %), over 30 %" in err
    status, out, _ = said([*words, "--json"], capsys)
    assert status == 1 and json.loads(out)["error"]["code"] == "INPUT_DATA_LIMIT_EXCEEDED"
    assert said([*words[:-1], "duplicates>34%"], capsys)[0] == 0


def test_report_needs_no_base(place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a base on this machine it has no tokens and no rendered rows, and all the rest."""
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "none"))
    [made] = document(["data", "report", write(place / "a.jsonl", [chat("a", "b")])], capsys)["datasets"]
    assert made["tokens"] is None and made["rows"] == [] and made["characters"]["total"] == 2


def test_report_prints_no_terminal_escapes(place: Path, capsys: Capture) -> None:
    """Control characters of rows, reasons and names do not reach the terminal."""
    rows = [chat(HOSTILE, "b"), chat(HOSTILE, "b"), {**chat("a", "b"), f"weight_{HOSTILE}": 3}]
    data = write(place / "a\x1b[31m.jsonl", rows)
    status, out, err = said(["data", "report", data, "--model", BASE], capsys)
    assert status == 0 and not {"\x1b", "\x07", "\u202e"} & set(out + err)
