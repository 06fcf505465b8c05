"""Several first commands at once: in a home where neither Prefect nor MLflow has a database yet."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.backprop_core import nano
from tests.faults.test_outage import BACKPROP, user_environment

TRAIN = ("--steps", "1", "--set", "training.lora.rank=2", "--json")


def at_once(root: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of commands that are started at the same time."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [
        subprocess.Popen([BACKPROP, *words], env=user_environment(root), cwd=root, text=True, **pipes)  # type: ignore[call-overload]
        for words in commands
    ]
    return [(one.returncode, out, err) for one in several for out, err in [one.communicate(timeout=280)]]


def test_several_first_commands_find_a_prefect_server(tmp_path: Path) -> None:
    """Each has a server that answers: one makes Prefect's database, and the others wait for it."""
    ended = at_once(tmp_path, [["rollback", f"nowhere-{number}"] for number in range(4)])
    assert [("INPUT_REF_UNKNOWN" in err, status) for status, _, err in ended] == [(True, 1)] * 4, ended
    again = at_once(tmp_path, [["rollback", "nowhere"]] * 2)
    assert [("INPUT_REF_UNKNOWN" in err, status) for status, _, err in again] == [(True, 1)] * 2, again


@pytest.mark.timeout(900)
@pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults")
def test_several_first_trainings_are_done_and_recorded(tmp_path: Path) -> None:
    """All of them exit with 0, and the history has each."""
    nano.build(tmp_path / "base")
    commands = []
    for number in range(3):
        data = tmp_path / f"task{number}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(40, seed=number)))
        commands.append(["train", "--model", "./base", "--data", data.name, "--line", f"line-{number}", *TRAIN])
    ended = at_once(tmp_path, commands)
    assert [status for status, *_ in ended] == [0] * 3, ended
    [(status, listed, err)] = at_once(tmp_path, [["list-runs", "--json"]])
    assert status == 0 and {run["line"] for run in json.loads(listed)} == {"line-0", "line-1", "line-2"}, err
