"""What people see on stderr, and the tables on stdout."""

import io
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime import log_context
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import (
    DatasetSummary,
    Drift,
    Evaluation,
    GGUFRecord,
    KeptStep,
    Located,
    RunRecord,
    RunResult,
)
from flows.cli import run_text, tables
from flows.cli.console import Bar, configure_logging, error_text, say_error, trace_text
from tasks.runs.outcome import as_coded
from tasks.runs.progress import Progress
from tasks.tracking import RunSummary

SECRET = "hf_" + "a1B2c3D4" * 4
DIGEST = "ab" * 32
pytestmark = pytest.mark.usefixtures("same_logging")


def drawn(renderable: RenderableType, width: int = 80) -> list[str]:
    """The lines that a terminal of this width shows."""
    file = io.StringIO()
    Console(file=file, width=width, markup=False).print(renderable, crop=False)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_an_error_is_two_lines() -> None:
    """Whatever stands in it: line breaks, terminal commands, secrets."""
    error = ConfigInvalid(f"no field a\nb\x1b[31m {SECRET}", hint="one\r\ntwo\x07")
    text = error_text(error)
    assert text == "[CONFIG_INVALID] no field a b\N{REPLACEMENT CHARACTER}[31m ***\none two\N{REPLACEMENT CHARACTER}"


def test_a_traceback_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a secret variable is blanked wherever it appears."""
    monkeypatch.setenv("MY_API_KEY", "a-very-long-value")
    try:
        raise ValueError("sent a-very-long-value")
    except ValueError as error:
        trace = trace_text(error)
    assert "ValueError: sent ***" in trace and "a-very-long-value" not in trace


def logged(config: Settings, capsys: pytest.CaptureFixture[str], *, verbose: bool = False) -> list[str]:
    """The lines on stderr after a few records and a warning."""
    configure_logging(config, verbose=verbose)
    logging.getLogger("tasks.runs.flow_run").info("run_started run_id=%s token=%s", "abc", SECRET)
    logging.getLogger("tasks.runs.flow_run").debug("detail")
    logging.getLogger("prefect.flow_runs").error("Encountered exception during execution")
    logging.getLogger("elsewhere").warning("look out")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("of a library", UserWarning, stacklevel=1)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_logs_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Our records and others' warnings, without secrets; not what Prefect and the libraries tell their developers."""
    first, second = logged(Settings(), capsys)
    assert first.endswith("run_started run_id=abc token=***") and "[info]" in first
    assert second.endswith("look out")


def test_verbose_tells_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """With --verbose nothing is kept back."""
    text = "\n".join(logged(Settings(), capsys, verbose=True))
    assert [word for word in ("detail", "Encountered", "look out", "of a library") if word not in text] == []


def test_logs_as_json_and_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """JSON is one document a line; the file has what the screen leaves out."""
    file = tmp_path / "log"
    lines = [json.loads(line) for line in logged(Settings(log_json=True, log_file=file), capsys)]
    assert [line["event"] for line in lines] == ["run_started run_id=abc token=***", "look out"]
    assert {"level", "timestamp", "logger"} <= lines[0].keys()
    assert "Encountered exception" in file.read_text() and SECRET not in file.read_text()


def test_log_level(capsys: pytest.CaptureFixture[str]) -> None:
    """A higher level keeps our own records back."""
    assert [line.rpartition(" ")[2] for line in logged(Settings(log_level="error"), capsys)] == ["out"]


def test_without_a_terminal_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets the newest state of the stage at every interval, even while nothing is reported."""
    with Bar(every=0.02) as bar:
        bar(Progress(stage="train", done=3, total=60, values={"loss": 1.23456, "learning_rate": 1e-4}))
        while "train" not in (text := capsys.readouterr().err):
            pass
    assert text.splitlines()[-1].startswith("train 3/60 loss=1.235 (")


class Terminal(io.StringIO):
    """Something that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a bar that is gone afterwards, and a line for a stage that took its time."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("flows.cli.console.WORTH_A_LINE", 0.0)
    with Bar() as bar:
        bar(Progress(stage="train", done=1, total=2, values={"loss": 0.5}))
        bar(Progress(stage="train", done=2, total=2, values={"loss": 0.25}))
        bar(Progress(stage="merge", done=0, total=0))
    text = terminal.getvalue()
    assert "━" in text and "train 2/2 loss=0.25 (" in text and text.index("train 2/2") < text.index("merge (")


ANSWERS = [{"prompt": "Hi", "answer": f" {said}", "reference": "Hello.", "stopped": True} for said in ("Hello.", "Ha")]


def result(**changes: object) -> RunResult:
    """Two runs, the second task not yet known to the first."""
    runs = [
        RunRecord(
            run_id="ab" * 16,
            dataset=DatasetSummary(
                name=name, task=name, digest=DIGEST, train_rows=90, heldout_rows=10, dropped={"empty": 2, "bad": 1}
            ),
            tuned=Located(digest=DIGEST, path="/t"),
            merged=Located(digest=DIGEST, path="/m"),
            steps=5,
            tokens=1000,
            seconds=65.4,
            train_loss=0.5,
            cached=False,
            accepted=True,
            drift=Drift(a=1.2, b=0.045, weight=2**-0.5) if name == "[red]second" else None,
        )
        for name in ("first", "[red]second")
    ]
    evaluation = Evaluation(
        tasks=["first", "second", "general"],
        watch=["general"],
        metric="token_accuracy",
        matrix=[[0.5, None, 0.9], [0.4, 0.75, 0.8]],
        loss=[[1, None, 1], [1, 1, 1]],
        exact_match=[[0, None, 0], [0, 0, 0]],
        base=[0.125, 0.25, 1.0],
        base_exact_match=[0, 0, 0],
        average=0.575,
        backward_transfer=-0.1,
        forgetting=[0.1, 0.0, 0.2],
    )
    file = GGUFRecord(
        quantization="q4_k_m",
        digest=DIGEST,
        path="/" + "long/" * 30 + "model.gguf",
        bytes=3 * 2**20,
        fidelity={"top1": 0.97, "kl": 0.0123, "answers": ANSWERS},
    )
    fields = {"run_id": "cd" * 16, "line": "support", "status": "finished", "spec": {}, "runs": runs}
    return RunResult(**(fields | {"evaluation": evaluation, "gguf": [file]} | changes))


def test_matrix_as_a_table() -> None:
    """The base first, a row a run, blanks where a task came later, watched tasks in brackets; no markup is read."""
    lines = drawn(run_text.run(result()))
    start = next(index for index, line in enumerate(lines) if line.startswith("after"))
    assert [line.split() for line in lines[start : start + 4]] == [
        ["after", "first", "second", "(general)"],
        ["base", "12.5", "25.0", "100.0"],
        ["first", "50.0", "90.0"],
        ["[red]second", "40.0", "75.0", "80.0"],
    ]
    assert lines[start + 2].index("90.0") == lines[start + 3].index("80.0")
    assert lines[start + 4].split() == ["▂▅▄", "▃", "▇", "██▇"]
    assert lines[start + 5].split() == ["forgotten", "10.0", "0.0", "20.0"]
    assert "backward transfer -10.0 points" in lines[start + 6]
    assert lines[start + 7] == "[red]second merged: λ 0.707, A moved by 120.0%, B by 4.5%"


def test_the_best_step_is_told() -> None:
    """Where a run stopped and which step it kept, or that it ran to its end; nothing without early stopping."""
    plain = result()
    kept = [KeptStep(step=3, loss=0.51234, planned=20), KeptStep(step=4, loss=1.0, planned=5)]
    runs = [run.model_copy(update={"kept": one}) for run, one in zip(plain.runs, kept, strict=True)]
    found = "\n".join(drawn(run_text.run(result(runs=runs))))
    assert "first: stopped at step 5 of 20, best step 3, held-out loss 0.5123" in found
    assert "[red]second: best step 4 of 5, held-out loss 1.0000" in found
    assert "best step" not in "\n".join(drawn(run_text.run(plain)))


def test_another_metric_has_a_matrix_of_its_own() -> None:
    """Beside token accuracy; of loss, which counts downwards, without curves."""
    made = result()
    assert made.evaluation
    scores = {"scores": [[-1.0, None, -2.0], [-1.5, -3.0, -2.5]], "base_scores": [-2.0, -4.0, -2.0], "metric": "loss"}
    lines = drawn(run_text.run(made.model_copy(update={"evaluation": made.evaluation.model_copy(update=scores)})))
    start = lines.index("loss")
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["after", "first", "second", "(general)"],
        ["base", "2.000", "4.000", "2.000"],
        ["first", "1.000", "2.000"],
    ]


def test_the_matrix_is_a_heat_map_on_a_terminal() -> None:
    """Each score stands on its colour, the same for the same score."""
    assert run_text.heat(0.05).style != run_text.heat(0.95).style == run_text.heat(1.0).style
    assert (run_text.heat(None).plain, run_text.heat(None).style) == ("", "")


def test_tables_fit_80_columns() -> None:
    """No line is longer, but for a path, which is never broken so that it can be copied."""
    lines = drawn(run_text.run(result()))
    assert [line for line in lines if len(line) > 80 and "model.gguf" not in line] == []
    [path] = [line for line in lines if "model.gguf" in line]
    assert path.endswith("model.gguf  3.0 MiB  same next token 97.0%, KL 0.012 nats, same answers 1 of 2")


def test_what_to_do_next() -> None:
    """Every end of a run says how to go on."""
    last = {
        status: drawn(run_text.run(result(status=status, gguf=[])))[-1]
        for status in ("finished", "failed", "interrupted")
    }
    assert "backprop resume" in last["failed"] and "backprop resume" in last["interrupted"]


@pytest.mark.parametrize(("flow", "said"), [("drift", "start it again"), ("train", "backprop resume abc")])
def test_a_look_at_fresh_rows_is_not_resumed(flow: str, said: str) -> None:
    """`backprop resume` refuses a run of drift, so nobody is sent there."""
    assert said in as_coded(KeyboardInterrupt(), "abc", flow).hint
    last = drawn(run_text.run(result(status="interrupted", flow=flow, gguf=[])))[-1]
    assert ("backprop resume" in last) == (flow == "train")


def test_history_as_a_table() -> None:
    """A row a run: datasets, or the error's code if it failed; an empty history says how to begin."""
    common = {"line": "default", "started": "2026-01-02T03:04:05+00:00", "seconds": 65.0, "average": None}
    good = RunSummary(run_id="ab" * 16, status="finished", datasets=["a", "b"], error=None, **common)
    bad = RunSummary(run_id="cd" * 16, status="failed", datasets=["a"], error="RUNTIME_GPU_OOM", **common)
    lines = drawn(tables.runs([good, bad]))
    assert lines[1].split()[-2:] == ["a,", "b"] and lines[2].split()[-1] == "RUNTIME_GPU_OOM"
    assert "1:05 min" in lines[1] and max(map(len, lines)) <= 80
    assert "backprop demo" in drawn(tables.runs([]))[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0 s"), (48, "48 s"), (185, "3:05 min"), (7620, "2:07 h")]
)
def test_durations(seconds: float | None, text: str) -> None:
    """Seconds as people say them."""
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    """Bytes in units of 1024."""
    assert tables.size(count) == text


def test_why_rows_were_not_trained_is_said_in_words() -> None:
    """Bad rows are dropped, by reason; good rows that are not trained are named by what they are instead."""
    shared = {"name": "night", "task": "night", "digest": DIGEST, "train_rows": 90, "heldout_rows": 10}
    kept = {"held_out": 10, "learned": 7, "held_out_elsewhere": 2}
    dataset = DatasetSummary(**shared, dropped={"not_json": 1}, not_trained=kept)
    assert str(run_text.not_trained(dataset)) == (
        "night, not trained: 10 held out to score, 7 learned before, 2 held out for another task, "
        "1 dropped (1 not json)"
    )
    assert run_text.not_trained(DatasetSummary(**shared, dropped={}, not_trained={"held_out": 10})) is None


@pytest.mark.parametrize("secret", ["info", "event", "timestamp", "tasks.runs.flow_run", 'with "quotes" in it', "true"])
def test_a_log_in_json_stays_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    """Whatever the secret: it is blanked in what was said, and no key, level or name of the line is touched."""
    monkeypatch.setenv("BACKPROPAGATE_AUTH_PASSWORD", secret)
    configure_logging(Settings(log_json=True), verbose=True)
    logging.getLogger("tasks.runs.flow_run").info("sent %s", secret)
    try:
        raise ValueError(f"sent {secret}")
    except ValueError:
        logging.getLogger("tasks.runs.flow_run").exception("it failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], second["level"]) == ("info", "tasks.runs.flow_run", "error")
    assert "ValueError: sent" in second["exception"]
    if "quotes" in secret:
        assert first["event"] == "sent ***" and "quotes" not in str(second)


def test_a_traceback_in_a_log_for_people_has_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception that a record brings along is blanked too."""
    monkeypatch.setenv("MY_API_KEY", "a-very-long-value")
    configure_logging(Settings(), verbose=True)
    try:
        raise ValueError("sent a-very-long-value")
    except ValueError:
        logging.getLogger("tasks.runs.flow_run").exception("it failed")
    text = capsys.readouterr().err
    assert "ValueError: sent ***" in text and "a-very-long-value" not in text


@pytest.mark.parametrize("place", ["none/log", "file/log", ""])
def test_a_log_file_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, place: str) -> None:
    """Its directory is missing, a file is in the way, or it is a directory."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match="log file"):
        configure_logging(Settings(log_file=tmp_path / place), verbose=False)


def test_every_line_of_a_json_log_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    """Records of ours and of libraries, prints, bars and errors: one document each, with run_id, line and stage."""
    stderr = sys.stderr
    try:
        configure_logging(Settings(log_json=True), verbose=True)
        with log_context.about(run_id="a1", line="support"), log_context.about(stage="train"):
            logging.getLogger("prefect.flow_runs").warning("of Prefect")
            logging.getLogger("some.library").warning("of %s", SECRET)
            print(f"two lines\nof {SECRET}", file=sys.stderr)
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.warn("of a library", UserWarning, stacklevel=1)
        with Bar(every=0.02) as bar:
            bar(Progress(stage="train", done=3, total=60))
            time.sleep(0.1)
        say_error(ConfigInvalid("it is wrong", hint="mend it"))
    finally:
        sys.stderr = stderr
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    about = [(line["run_id"], line["line"], line["stage"]) for line in lines]
    assert about[:5] == [("a1", "support", "train")] * 5 and set(about[5:]) == {(None, None, None)}
    assert [line["event"] for line in lines[2:4]] == ["two lines", "of ***"] and SECRET not in text
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)
    assert (lines[-1]["code"], lines[-1]["hint"], lines[-1]["level"]) == ("CONFIG_INVALID", "mend it", "error")
