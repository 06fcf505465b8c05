"""`store prune` at a real terminal: it lists, asks, and deletes only after a yes."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import AdapterRef
from backprop_core.store.artifacts import Store
from flows.cli import main

RUN = "c" * 32


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """A candidate that nobody promoted, made 40 days ago."""
    store = Store(settings().store_path)
    with store.begin("test") as directory:
        (directory / "weights").write_text("x" * 1000)
        ref = store.commit(directory, AdapterRef, record={}, kind="merged")
    folder = store.layout.run(RUN).root
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"flow": "multi-run", "spec": {"line": "default"}}))
    (folder / "result.json").write_text(json.dumps({"status": "finished", "merged": ref.digest}))
    then = time.time() - 40 * 86400
    os.utime(folder / "result.json", (then, then))
    yield store
    store.close()


def at_a_terminal(answer: str) -> tuple[int, str]:
    """Exit status of `backprop store prune`, and what was seen, where a person types an answer."""
    own, its = pty.openpty()
    command = [sys.executable, "-m", "flows", "store", "prune"]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its)
    os.close(its)
    seen = b""
    while b"yes or no:" not in seen:
        seen += os.read(own, 4096)
    os.write(own, f"{answer}\n".encode())
    try:
        while part := os.read(own, 4096):
            seen += part
    except OSError:  # its side is closed
        pass
    return process.wait(), seen.decode()


def test_it_asks_first(store: Store) -> None:
    """Everything that would go is listed, and stays unless the answer is yes."""
    status, seen = at_a_terminal("no")
    assert status == 1 and f"run {RUN[:12]} (multi-run, line default)" in seen and "Nothing was deleted" in seen
    assert store.count() == 1
    status, seen = at_a_terminal("yes")
    assert status == 0 and "deleted 1 artifacts" in seen and store.count() == 0


def test_a_script_says_yes(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal nothing is deleted until --yes is given."""
    assert main.main(["store", "prune"]) == 1
    assert "[CONFIG_CONFIRMATION_REQUIRED] 1 artifacts" in capsys.readouterr().err and store.count() == 1
    assert main.main(["store", "prune", "--dry-run"]) == 0 and store.count() == 1
    capsys.readouterr()
    assert main.main(["store", "prune", "--yes", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [item["what"] for item in document["items"]] == [f"run {RUN[:12]} (multi-run, line default)"]
    assert store.count() == 0


def test_a_pin_keeps_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`store keep REF` takes a prefix of a run_id, is listed, and can be undone; what it names is not pruned."""
    assert main.main(["store", "keep", RUN[:6]]) == 0
    assert main.main(["store", "prune", "--yes"]) == 0 and store.count() == 1
    capsys.readouterr()
    assert main.main(["store", "keep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {RUN: 1}
    assert main.main(["store", "keep", RUN[:6], "--undo"]) == 0
    assert main.main(["store", "prune", "--yes"]) == 0 and store.count() == 0


def test_what_is_younger_than_the_setting_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """BACKPROPAGATE_KEEP_DAYS is how long a result stays that is no version of a line."""
    monkeypatch.setenv("BACKPROPAGATE_KEEP_DAYS", "60")
    assert main.main(["store", "prune", "--yes"]) == 0 and store.count() == 1
