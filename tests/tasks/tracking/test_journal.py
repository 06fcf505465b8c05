"""The journal: lines on disk that survive what may happen to their writer."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from backprop_core.errors import RunActive
from backprop_core.schema.refs import ErrorRecord, Evaluation
from backprop_core.store.layout import JournalLayout
from tasks.tracking.journal import NAME, NOTE, SECONDS, Clock, Journal, ending, parameters, read_journal
from tasks.tracking.record import tags_of

ROOT, CHILD = "a" * 32, "b" * 32


def open_journal(directory: Path) -> Journal:
    journal = Journal(directory, ROOT)
    journal.start(line="support", name="multi-run")
    return journal


def lines_of(directory: Path) -> list[dict[str, object]]:
    """What is in the file, read without the code under test."""
    return [json.loads(line) for line in JournalLayout(directory).lines(ROOT).read_text().splitlines()]


def steps_of(directory: Path) -> list[object]:
    return [line["step"] for line in lines_of(directory) if line["kind"] == "metrics"]


def run_python(code: str, *arguments: object, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def test_a_step_is_journaled_once(tmp_path: Path) -> None:
    """A step at or below the highest one of its metric is not written again, in this process or the next."""
    with open_journal(tmp_path) as journal:
        for step in (0, 1, 2, 1, 2, 3):
            journal.metrics(step, {"loss": step / 2})
    with open_journal(tmp_path) as journal:
        for step in (2, 3, 4):
            journal.metrics(step, {"loss": 9.0})
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]


def test_steps_are_counted_by_metric_and_run(tmp_path: Path) -> None:
    """What one metric or one run has journaled does not hide another's."""
    with open_journal(tmp_path) as journal:
        journal.metrics(5, {"loss": 1.0})
        journal.metrics(5, {"loss": 2.0, "average": 0.5})
        journal.child(CHILD).metrics(1, {"loss": 3.0})
    measured = [(line["run"], line["values"]) for line in lines_of(tmp_path) if line["kind"] == "metrics"]
    assert measured == [(ROOT, {"loss": 1.0}), (ROOT, {"average": 0.5}), (CHILD, {"loss": 3.0})]


def test_a_torn_last_line_is_no_line(tmp_path: Path) -> None:
    """Wherever the last line is cut, the lines before it are read and the next one stands alone."""
    with open_journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
    whole = JournalLayout(tmp_path).lines(ROOT).read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
        JournalLayout(tmp_path).lines(ROOT).write_bytes(whole[:cut])
        assert [line.kind for _, line in read_journal(JournalLayout(tmp_path).lines(ROOT))] == ["start"]
        with Journal(tmp_path, ROOT) as journal:
            journal.metrics(1, {"loss": 2.0})
        assert [line["kind"] for line in lines_of(tmp_path)] == ["start", "metrics"]


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from tasks.tracking.journal import Journal
with Journal(Path(sys.argv[1]), sys.argv[2]) as journal:
    journal.start(line="support", name="multi-run")
    print("writing", flush=True)
    for step in range(10**9):
        journal.metrics(step, {f"metric_{n}": step / 7 for n in range(400)})
"""


@pytest.mark.parametrize("lines", [1, 40])
def test_a_killed_writer_leaves_whole_steps(tmp_path: Path, lines: int) -> None:
    """After SIGKILL of the writer the lock is free, every step from the first is there once, and work goes on."""
    writer = run_python(WRITE_FOR_EVER, tmp_path, ROOT)
    assert writer.stdout and writer.stdout.readline() == "writing\n"
    while JournalLayout(tmp_path).lines(ROOT).stat().st_size < lines * 8_000:
        pass
    writer.send_signal(signal.SIGSTOP)
    with pytest.raises(RunActive):
        Journal(tmp_path, ROOT)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    with Journal(tmp_path, ROOT) as journal:
        last = int(str(steps_of(tmp_path)[-1]))
        journal.metrics(last, {"metric_0": 0.0})
        journal.metrics(last + 1, {"metric_0": 0.0})
    assert steps_of(tmp_path) == list(range(last + 2))


WRITE_PAST_THE_LIMIT = """
import sys
from pathlib import Path
from tasks.tracking.journal import Journal
with Journal(Path(sys.argv[1]), sys.argv[2]) as journal:
    journal.start(line="support", name="multi-run")
    for step in range(100):
        journal.metrics(step, {"loss": 1.0})
print("the work is done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_costs_the_record_not_the_work(tmp_path: Path) -> None:
    """When the disk takes no more, the run goes on with one warning, and the file ends with a whole line."""
    limit = 3_333
    writer = run_python(
        WRITE_PAST_THE_LIMIT, tmp_path, ROOT, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    out, err = writer.communicate()
    assert (writer.returncode, out) == (0, "the work is done\n")
    assert err.count("cannot be written") == 1
    steps = steps_of(tmp_path)
    assert 0 < len(steps) < 100 and steps == list(range(len(steps)))


def test_secrets_are_blanked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value of a secret variable reaches the disk, and a number that looks like one keeps the JSON whole."""
    monkeypatch.setenv("MY_API_KEY", "canary-8461")
    monkeypatch.setenv("MAX_TOKENS", "131072")
    with Journal(tmp_path, ROOT) as journal:
        tags = {"backprop.reason": "canary-8461"}
        journal.start(line="support", name="train", params={"path": "s3://canary-8461"}, tags=tags)
        journal.tags({"u": "https://user:pass1234@host/x"})
        journal.document("spec.json", {"datasets": [{"path": "canary-8461"}], "max_length": 131072})
        error = ErrorRecord(code="X", message="canary-8461", hint="canary-8461", retryable=False)
        journal.end("failed", error)
    text = JournalLayout(tmp_path).lines(ROOT).read_text()
    assert "canary" not in text and "pass1234" not in text and text.count("***") == 6
    assert lines_of(tmp_path)[2]["value"] == {"datasets": [{"path": "***"}], "max_length": 131072}


def test_times_are_milliseconds_that_do_not_go_back(tmp_path: Path) -> None:
    """Every line carries the time at which it was written."""
    with open_journal(tmp_path) as journal:
        for step in range(5):
            journal.metrics(step, {"loss": float("nan")})
    times = [int(str(line["time"])) for line in lines_of(tmp_path)]
    written = os.stat(JournalLayout(tmp_path).lines(ROOT)).st_mtime_ns // 1_000_000
    assert all(a <= b for a, b in pairwise(times)) and abs(times[-1] - written) < 1000


def test_the_matrix_becomes_metrics_by_task(tmp_path: Path) -> None:
    """Step 0 is the base, step i run i; told again with one run more, only the new row is written."""
    with open_journal(tmp_path) as journal:
        journal.evaluation(matrix([[0.5]], ["x"], base=[0.1]))
        journal.evaluation(matrix([[0.5, None], [0.4, 0.7]], ["x", "y"], base=[0.1, 0.2]))
    history = [(line["step"], line["values"]) for line in lines_of(tmp_path) if line["kind"] == "metrics"]
    accuracy = [
        (step, name, value)
        for step, values in history
        for name, value in dict(values).items()  # type: ignore[call-overload]
        if name.startswith(("token_accuracy", "average"))
    ]
    assert accuracy == [
        (0, "token_accuracy.x", 0.1),
        (1, "token_accuracy.x", 0.5),
        (1, "average", 0.5),
        (0, "token_accuracy.y", 0.2),
        (2, "token_accuracy.x", 0.4),
        (2, "token_accuracy.y", 0.7),
        (2, "average", 0.55),
    ]


def matrix(rows: list[list[float | None]], tasks: list[str], base: list[float]) -> Evaluation:
    last = [score for score in rows[-1] if score is not None]
    return Evaluation(
        tasks=tasks,
        watch=[],
        metric="token_accuracy",
        matrix=rows,
        loss=rows,
        exact_match=rows,
        base=base,
        base_exact_match=base,
        average=round(sum(last) / len(last), 9),
        backward_transfer=None,
        forgetting=[0.0] * len(tasks),
    )


def test_parameters_are_the_leaves_of_a_spec() -> None:
    """Every leaf has its path as a name; a list of values is one leaf."""
    spec = {
        "line": "a",
        "datasets": [{"path": "x", "rows": None}],
        "training": {"lora": {"target_modules": ["q", "v"]}},
    }
    assert parameters(spec) == {
        "line": "a",
        "datasets.0.path": "x",
        "datasets.0.rows": "None",
        "training.lora.target_modules": "['q', 'v']",
    }


def at(directory: Path, *lines: tuple[str, int, dict[str, object]]) -> Path:
    """A journal with these lines: kind, second, the rest."""
    path = JournalLayout(directory).lines(ROOT)
    defaults: dict[str, dict[str, object]] = {
        "start": {"format": 1, "line": "support", "name": "retrain", "parent": None, "params": {}, "tags": {}},
        "end": {"status": "finished", "error": None},
    }
    texts = [
        json.dumps({"time": second * 1000, "run": ROOT, "kind": kind, **defaults.get(kind, {}), **more})
        for kind, second, more in lines
    ]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


HOURS = 3600


def test_a_wait_is_no_time_at_work(tmp_path: Path) -> None:
    """Hours for a person, for the device, or between a process that died and the next one are not counted."""
    path = at(
        tmp_path,
        ("start", 100, {}),
        ("waited", 160, {"since": 110_000, "on": "device"}),
        ("tags", 170, {"tags": {}}),  # here it is killed
        ("start", 5 * HOURS, {}),
        ("waited", 9 * HOURS, {"since": (5 * HOURS + 4) * 1000, "on": "person"}),
        ("end", 9 * HOURS + 6, {}),
    )
    clock = Clock()
    for _, line in read_journal(path):
        clock.see(line)
    assert clock.seconds(ROOT) == (70 - 50) + 4 + 6
    assert ending(JournalLayout(tmp_path), ROOT, ROOT) == ("finished", 30)


def test_a_run_says_how_long_it_worked(tmp_path: Path) -> None:
    """In a tag, with its end; a moment's wait is not noted."""
    with open_journal(tmp_path) as journal:
        with journal.waiting("device"):
            pass
        with journal.waiting("person"):
            time.sleep(1.2)
        journal.end("finished")
    kinds = [line["kind"] for line in lines_of(tmp_path)]
    assert kinds == ["start", "waited", "tags", "end"]
    assert 0 <= float(dict(lines_of(tmp_path)[2]["tags"])[SECONDS]) < 1.2  # type: ignore[call-overload]


def test_what_a_run_came_to_stands_in_its_journal(tmp_path: Path) -> None:
    """Nothing while its writer lives; interrupted when that is gone without an end; else its end."""
    with open_journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
        assert ending(JournalLayout(tmp_path), ROOT, ROOT) is None
    assert ending(JournalLayout(tmp_path), ROOT, ROOT) == ("interrupted", pytest.approx(0, abs=5))
    with open_journal(tmp_path) as journal:
        journal.end("failed")
    assert ending(JournalLayout(tmp_path), ROOT, ROOT) == ("failed", pytest.approx(0, abs=5))
    assert ending(JournalLayout(tmp_path), CHILD, CHILD) is None


def test_a_resumed_run_is_named_and_described_anew(tmp_path: Path) -> None:
    """The name and the description of how it failed do not stand over a run that goes on."""
    with open_journal(tmp_path) as journal:
        journal.name("support failed 2026-11-30")
        journal.describe("# It failed")
        journal.end("failed")
    with Journal(tmp_path, ROOT) as journal:
        journal.start(line="support", name="support candidate 2026-12-01", tags={"version": "2"})
    shown: dict[str, str] = {}
    for _, line in read_journal(JournalLayout(tmp_path).lines(ROOT)):
        shown |= tags_of(line)
    assert (shown[NAME], shown[NOTE], shown["version"]) == ("support candidate 2026-12-01", "", "2")
