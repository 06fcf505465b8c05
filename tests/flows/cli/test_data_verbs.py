"""`backprop data …`: what is printed, where, and with which exit status."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backprop_core.data.curation import curate
from backprop_core.data.forgotten_rows import forget
from backprop_core.data.loading import good_rows, snapshot
from backprop_core.data.report import FIGURES
from backprop_core.data.restored_rows import QuarantinedRow
from backprop_core.data.row_identity import identity
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.store.artifacts import Store
from flows.cli import data_text, main
from tasks.runs.data_restore import Restored

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


def test_fail_on_names_every_figure(capsys: Capture) -> None:
    """The help lists the names that --fail-on takes."""
    _, out, _ = said(["data", "report", "--help"], capsys)
    assert [name for name in FIGURES if name not in out] == []


@pytest.mark.parametrize("too_long", ["drop", "cut_left", "windows"])
def test_preview_says_what_becomes_of_a_long_row(too_long: str, place: Path, capsys: Capture) -> None:
    """A row whose answer does not fit is said to be left out or cut, as training.too_long says; another is not."""
    data = write(place / "a.jsonl", [chat("the question", "the answer " * 30), chat("short", "row")])
    words = ["data", "preview", data, "--model", BASE, "--max-length", "30", "--set", f"training.too_long={too_long}"]
    _, out, _ = said(words, capsys)
    assert out.count("does not fit") == 1 and f"training.too_long={too_long}" in out


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


def test_preview_hides_forgotten_rows(place: Path, home: Path, capsys: Capture) -> None:
    """A row that the home has forgotten is never drawn; at its line stands that it was forgotten, and not its text."""
    path = Path(write(place / "a.jsonl", [chat("What is the code?", "It is 7421."), chat("a", "b")]))
    words = ["data", "preview", str(path), "--model", BASE]
    assert "7421" in said(words, capsys)[1]
    [row, _] = good_rows(snapshot(str(path), scratch=place), DatasetSpec(path=str(path)))
    forget([identity(row).hex()], [], Store(settings().store_path))
    status, out, _ = said(words, capsys)
    assert status == 0 and "7421" not in out and "line 2" in out
    status, out, _ = said([*words, "--row", "1"], capsys)
    assert status == 0 and "7421" not in out and "line 1 · not used: it was forgotten" in out


def test_report_leaves_out_forgotten_rows(place: Path, home: Path, capsys: Capture) -> None:
    """A row that the home has forgotten is counted as dropped, and its text is in neither the page nor the document."""
    path = Path(write(place / "a.jsonl", [chat("What is the code?", "It is 7421."), chat("a", "b")]))
    [row, _] = good_rows(snapshot(str(path), scratch=place), DatasetSpec(path=str(path)))
    forget([identity(row).hex()], [], Store(settings().store_path))
    status, out, _ = said(["data", "report", str(path), "--output", "report.html"], capsys)
    assert status == 0 and "1 of 2 rows usable" in out and "7421" not in out + Path("report.html").read_text()
    [made] = document(["data", "report", str(path)], capsys)["datasets"]
    assert [(one["reason"], one["rows"]) for one in made["dropped"]] == [("forgotten", 1)] and made["usable"] == 1


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


def test_put_places_rows_once(place: Path, home: Path, capsys: Capture) -> None:
    """A file's bytes are put below data/ of the home under a name of their own, once; a run reads that directory."""
    rows = [chat(f"q{number}", "a") for number in range(5)]
    data = write(place / "Night 1.jsonl", rows)
    first = document(["data", "put", data, "--line", "support"], capsys)
    again = document(["data", "put", data, "--to", "support"], capsys)
    path = Path(first["path"])
    assert path.parent == home / "data" / "support" and path.read_bytes() == Path(data).read_bytes()
    assert (first["rows"], first["malformed"], first["already_there"]) == (5, 0, False)
    assert again == {**first, "already_there": True} and os.listdir(path.parent) == [path.name]
    other = document(["data", "put", write(place / "Night 1.jsonl", rows[:2]), "--to", "support"], capsys)
    assert other["path"] != first["path"]
    [made] = document(["data", "report", str(path.parent), "--model", BASE], capsys)["datasets"]
    assert (made["read"], made["usable"]) == (7, 5)


def test_put_reads_standard_input(place: Path, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a pipe are named by what they are; text that could be anything is refused."""
    for data, suffix in [(b'{"text": "a"}\n', ".jsonl"), (b'[{"text": "b"}]', ".json")]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        done = document(["data", "put", "-"], capsys)
        assert Path(done["path"]).read_bytes() == data and done["path"].endswith(suffix)
    for data, code in [(b"q,a\n1,2\n", "INPUT_VALIDATION_FAILED"), (b"", "INPUT_NO_ROWS")]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        status, out, err = said(["data", "put", "-"], capsys)
        assert (status, out) == (1, "") and err.startswith(f"[{code}] standard input")
    assert len(list((home / "data" / "default").iterdir())) == 2


def test_put_leaves_nothing_of_bad_rows(place: Path, home: Path, capsys: Capture) -> None:
    """A file with malformed rows, a directory and a name that leads elsewhere are refused, and nothing is placed."""
    bad = write(place / "bad.jsonl", [chat("a", "b"), {"prompt": 3, "completion": "b"}])
    for words in (["bad.jsonl"], ["."], ["bad.jsonl", "--to", "../x"], ["none.jsonl"]):
        status, out, _ = said(["data", "put", *words], capsys)
        assert (status, out) == (1, "")
    assert [path for path in home.rglob("*") if "bad" in path.name] == [] and Path(bad).is_file()
    assert said(["data", "put", bad, "--set", "datasets.0.max_bad_rows=0.5"], capsys)[0] == 0


def test_split_holds_out_what_a_run_would(place: Path, capsys: Capture) -> None:
    """The held-out file has the rows whose hash is in the lowest tenth, the other file the rest; none is in both."""
    data = write(place / "a.jsonl", [chat(f"question {number}", f"answer {number}") for number in range(200)])
    made = document(["data", "split", data, "--heldout", "h.jsonl", "--train", "t.jsonl"], capsys)
    sides = [list(map(json.loads, Path(name).read_text().splitlines())) for name in ("h.jsonl", "t.jsonl")]
    heldout, train = ({identity(row) for row in side} for side in sides)
    assert (made["heldout_rows"], made["train_rows"]) == (len(heldout), len(train)) and len(heldout | train) == 200
    assert {int.from_bytes(row) * 10 < 1 << 256 for row in heldout} == {True}
    assert {int.from_bytes(row) * 10 < 1 << 256 for row in train} == {False}
    status, _, err = said(["data", "split", data, "--heldout", "h.jsonl"], capsys)
    assert status == 1 and "exists already" in err and "--force" in err
    more = document(["data", "split", data, "--heldout", "h.jsonl", "--share", "0.4", "--force"], capsys)
    larger = {identity(json.loads(line)) for line in Path("h.jsonl").read_text().splitlines()}
    assert heldout < larger and len(larger) == more["heldout_rows"]


@pytest.mark.parametrize("words", [["--heldout", "a.jsonl"], ["--heldout", "h", "--train", "./h"], ["--share", "1"]])
def test_split_refuses(words: list[str], place: Path, capsys: Capture) -> None:
    """It writes over neither its source nor the other file, even with --force, and takes no share that is none."""
    data = write(place / "a.jsonl", [chat(f"q{number}", "a") for number in range(9)])
    before = Path(data).read_bytes()
    heldout = [] if "--heldout" in words else ["--heldout", "h.jsonl"]
    status, _, err = said(["data", "split", "a.jsonl", *words, *heldout, "--force"], capsys)
    assert status == 1 and err.startswith("[CONFIG_INVALID] ") and Path(data).read_bytes() == before


STEPS = {
    "personal_data": "redact",
    "min_tokens": "8",
    "max_tokens": "99",
    "languages": '["en"]',
    "quality": '["echo"]',
    "near_duplicates": "0.9",
    "near_duplicates_on": "question",
    "decontaminate": "13",
    "contradictions": "drop_both",
    "sources": '[{"max_rows": 30}]',
    "perplexity": '{"drop_highest": 0.1}',
    "curriculum": "file",
}


@pytest.mark.parametrize("step", CurationSpec.model_fields)
def test_every_step_works_in_every_verb(step: str, place: Path, capsys: Capture) -> None:
    """What a job file says of curation stops none of the verbs that read rows."""
    data = write(place / "a.jsonl", [chat(f"what is {number}", f"a number called {number}") for number in range(40)])
    asked = ["--set", f"datasets.0.curation.{step}={STEPS[step]}", "--set", f"model.name={BASE}"]
    for words in (["split", data, "--heldout", "h.jsonl"], ["report", data], ["preview", data], ["put", data]):
        status, _, err = said(["data", *words, *asked], capsys)
        assert (status, err) == (0, ""), words


def test_split_counts_tokens_by_the_base(place: Path, capsys: Capture) -> None:
    """Rows that curation drops as too short are in neither file."""
    data = write(place / "a.jsonl", [chat("what is it", "word " * (number + 1)) for number in range(40)])
    words = ["data", "split", data, "--heldout", "h.jsonl", "--set", f"model.name={BASE}"]
    made = document([*words, "--set", "datasets.0.curation.min_tokens=30"], capsys)
    assert 0 < made["dropped"]["too_short"] < 40
    assert made["heldout_rows"] + made["train_rows"] + made["dropped"]["too_short"] == 40


def test_trace_finds_rows_by_id_and_by_text(place: Path, home: Path, capsys: Capture) -> None:
    """A row of a curated dataset is found by its id and by its text, with the file and line, also if it was dropped."""
    ann, bob = chat("who is Ann?", 'a "quoted" friend'), chat("who is Bob?", HOSTILE)
    data = write(place / "a.jsonl", [ann, bob, ann])
    store = Store(home / "store")
    curate(snapshot(data, scratch=place), DatasetSpec(path=data), store=store)
    store.close()
    name = identity({"messages": [turn("user", "who is Ann?"), turn("assistant", 'a "quoted" friend')]}).hex()
    for asked in (name, name[:8], 'a "quoted" friend'):
        found = document(["data", "trace", asked], capsys)
        assert [row["row"] for row in found["rows"]] == [name]
        assert [(file["place"], file["outcome"]) for file in found["rows"][0]["files"]] == [
            ("line 1", "kept"),
            ("line 3", "dropped"),
        ]
    assert document(["data", "trace", "who is"], capsys)["found"] == 2
    assert len(document(["data", "trace", "who is", "--limit", "1"], capsys)["rows"]) == 1
    status, out, err = said(["data", "trace", "alert(1)"], capsys)
    assert status == 0 and "who is Bob" not in out and not {"\x1b", "\x07", "\u202e"} & set(out + err)
    assert document(["data", "trace", "nobody"], capsys) == {"asked": "nobody", "found": 0, "rows": []}
    assert said(["data", "trace", " "], capsys)[0] == 1


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_job_file_says_how_to_read(place: Path, capsys: Capture) -> None:
    """With --line or --config a file is read as the job's dataset is; without a file it is that dataset."""
    job = "datasets:\n  - path: {}\n    columns: {{prompt: q, completion: a}}\n"
    for name in ("a.csv", "b.csv"):
        (place / name).write_text(f"q,a\nwho?,{name}\nwhy?,so\n")
    (place / "lines").mkdir()
    for file in ("lines/support.yaml", "job.yaml"):
        (place / file).write_text(job.format(place / "a.csv"))
    (place / "without.yaml").write_text("training: {max_length: 64}\n")
    for flags in (["--line", "support"], ["--config", "job.yaml"]):
        [made] = document(["data", "report", *flags, "--model", BASE], capsys)["datasets"]
        assert (Path(made["data"]).name, made["usable"]) == ("a.csv", 2)
        [made] = document(["data", "report", "b.csv", *flags, "--model", BASE], capsys)["datasets"]
        assert (made["data"], made["usable"]) == ("b.csv", 2)
    data = write(place / "c.jsonl", [chat("a", "b")])
    assert document(["data", "preview", data, "--config", "without.yaml", "--model", BASE], capsys)["max_length"] == 64
    assert said(["data", "report", "b.csv", "--model", BASE], capsys)[0] == 1


def test_preview_says_what_the_template_does_not_write(place: Path, capsys: Capture) -> None:
    """A row with a call, which the template has no place for, is not used; written as text, it is shown as that."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns: list[dict[str, Any]] = [turn("user", "rain?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    data = write(place / "a.jsonl", [{"messages": [*turns, {"role": "tool", "tool_call_id": "1", "content": "yes"}]}])
    [row] = document(["data", "preview", data, "--model", BASE], capsys)["rows"]
    assert "tool_calls" in row["refused"] and row["examples"] == []
    words = ["data", "preview", data, "--model", BASE, "--set", "datasets.0.tools=as_text"]
    [row] = document(words, capsys)["rows"]
    assert row["refused"] is None and "weather" in "".join(span["text"] for span in row["examples"][0]["spans"])


@pytest.mark.parametrize(
    "content",
    [
        {
            "messages": [{"role": "assistant", "content": "", "tool_calls": [{"arguments": {"mail": "WORD"}}]}],
            "tools": [],
        },
        {"messages": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "WORD"}]},
        {"text": "WORD"},
    ],
)
def test_a_row_in_quarantine_is_shown_whole(content: dict[str, Any]) -> None:
    """All that a row carries can be read before it is put back, wherever the personal data is."""
    row = QuarantinedRow(row="ab" * 32, content=content, files=[])
    console = Console(file=io.StringIO(), width=80)
    console.print(data_text.restored(Restored(restored=[], quarantined=[row])))
    assert "WORD" in console.file.getvalue()  # type: ignore[attr-defined]
