"""Talking to a model on the command line: through a pipe, at a terminal, and two models side by side."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.runtime.settings import settings
from backprop_core.store.artifacts import Store
from backprop_core.worker.gpu_slot import is_taken, taken
from flows.cli.main import main
from tests import tiny_line
from tests.faults.test_outage import BACKPROP, user_environment
from tests.warm_worker import SOCKET

ROOT = Path(__file__).parents[3]
ASKED = "Which team takes this request? I got the wrong radio. Thanks!"
pytestmark = pytest.mark.usefixtures("warm_worker", "same_logging")


@pytest.fixture
def line(home: Path) -> None:
    """A home with the line `support` of two versions."""
    tiny_line.write(settings(), versions=2)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_a_pipe_is_read_line_by_line(
    line: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is a question in the same conversation until /reset; the same question then has the same answer."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED}\nand then?\n\n/reset\n{ASKED}\n/quit\nnot asked\n"))
    status, out, err = said(capsys, "chat", "support", "--max-new-tokens", "12")
    assert status == 0, err
    first, _, again = out.splitlines()
    assert first == again and first


def test_chat_as_json_is_the_conversation(
    line: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --json nothing but the turns is printed, at the end."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED}\n"))
    status, out, _ = said(capsys, "chat", "support@1", "--system", "Be brief.", "--max-new-tokens", "8", "--json")
    turns = json.loads(out)["messages"]
    assert status == 0 and [turn["role"] for turn in turns] == ["system", "user", "assistant"] and turns[2]["content"]


def test_two_models_side_by_side(line: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Versions, the base and a file of rows; the JSON has what the table shows, and the answers of `generate`."""
    rows = [{"prompt": ASKED, "completion": "x"}, {"messages": [{"role": "user", "content": "Hello"}]}]
    files = [tmp_path / f"{number}.jsonl" for number in range(2)]
    for file, row in zip(files, rows, strict=True):
        file.write_text(json.dumps(row))
    limit = ["--max-new-tokens", "12"]
    status, out, _ = said(capsys, "compare", "support", "base", "--data", str(files[0]), *limit, "--json")
    [both] = json.loads(out)["answers"]
    assert status == 0 and both["a"] != both["b"] and both["messages"][-1]["content"] == ASKED
    _, out, _ = said(capsys, "generate", "support", "--prompt", ASKED, *limit, "--json")
    assert json.loads(out)["answers"][0]["text"] == both["a"]
    status, out, _ = said(capsys, "compare", "support@1", "support", "--prompt", ASKED, "--prompt", "Hello", *limit)
    assert status == 0 and ASKED in out and "support@1" in out and "of 2 answers differ" in out


def test_a_run_in_the_middle_loses_no_comparison(line: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that takes the device ends an answer; the question is asked again after the run."""
    slot, ran = Store(settings().store_path).layout.lock("cpu"), threading.Event()

    def run() -> None:
        while not is_taken([slot]):
            time.sleep(0.1)
        with taken([slot]):
            ran.set()

    threading.Thread(target=run, daemon=True).start()
    words = ["compare", "support", "base", "--prompt", ASKED, "--max-new-tokens", "600", "--json"]
    status, out, err = said(capsys, *words)
    assert status == 0 and ran.is_set(), err
    [both] = json.loads(out)["answers"]
    assert both["a"] and both["b"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["compare", "support", "base"], "CONFIG_INVALID"),
        (["compare", "support", "base", "--prompt", "a", "--data", "b"], "CONFIG_INVALID"),
        (["compare", "support", "nothing", "--prompt", "a"], "INPUT_REF_UNKNOWN"),
        (["chat", "nothing"], "INPUT_REF_UNKNOWN"),
        (["chat", "support", "--max-new-tokens", "0"], "CONFIG_INVALID"),
    ],
)
def test_what_cannot_be_asked(line: None, capsys: pytest.CaptureFixture[str], words: list[str], code: str) -> None:
    """Refused with a code and exit 1, before a model is loaded."""
    status, _, err = said(capsys, *words)
    assert status == 1 and err.startswith(f"[{code}]")


class Terminal:
    """`backprop chat` at a terminal."""

    def __init__(self, root: Path) -> None:
        warm = {name: os.environ[name] for name in ("BACKPROPAGATE_WORKER_PYTHON", SOCKET) if name in os.environ}
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [BACKPROP, "chat", "support", "--max-new-tokens", "1500", "--temperature", "2"],
            env=user_environment(root, TERM="dumb", PYTHONPATH=str(ROOT), **warm),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def hear(self, text: str, within: float = 120) -> None:
        """Wait until it says this text; what it says after that is for the next call."""
        deadline = time.monotonic() + within
        while text not in self.said:
            assert time.monotonic() < deadline, (text, self.said)
            if select.select([self._master], [], [], 0.1)[0]:
                self.said += os.read(self._master, 4096).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def hear_more(self, characters: int) -> None:
        """Wait until it has said so many characters more."""
        heard = len(self.said)
        while len(self.said) < heard + characters:
            self.said += os.read(self._master, 4096).decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A chat with a line, in a user's own environment."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", user_environment(tmp_path)["BACKPROPAGATE_HOME"])
    tiny_line.write(settings())
    made = Terminal(tmp_path)
    yield made
    made.close()


def test_a_person_at_a_terminal(terminal: Terminal) -> None:
    """Answers appear as they are written; Ctrl-C ends an answer, not the chat, any number of times; Ctrl-D ends it."""
    terminal.hear("> ")
    for _ in range(2):
        terminal.type(f"{ASKED}\n")
        terminal.hear("Thanks!")
        terminal.hear_more(20)  # of the answer
        terminal.process.send_signal(signal.SIGINT)
        terminal.hear("stopped")
        terminal.hear("> ")
    time.sleep(1)  # `input` prints its prompt before it waits, and a signal in between is seen at the next key
    terminal.process.send_signal(signal.SIGINT)
    terminal.hear("Ctrl-D ends.")
    terminal.hear("> ")  # only then the terminal passes Ctrl-D on as a key
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
