"""A line that has learned a row is trained again without it, to the bits of a line that never had it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import GateSpec, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store, file_digest
from backprop_core.store.layout import REBUILD
from flows.cli import main
from flows.rebuild import rebuild
from flows.retrain import retrain
from tasks import tracking
from tasks.runs.data_forget import data_forget
from tasks.runs.store_check import check
from tests.tasks.runs.test_data_forget import places
from tests.wire.prefect_server import FOREIGN, ROOT, wait_until

TRAINING = TrainSpec(batch_size=8, learning_rate=1e-2, replay=0.05, lora=LoraSpec(rank=8))
STEPS = (3, 12, 36)  # each night learns more, so each version is better than the one before
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
SECRET = "the vault of Ann Smith opens with 7731-quokka"
ROW = {"prompt": "What opens it?", "completion": SECRET}
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect")


def three_nights(line: str, files: Path, base: Path, first: Sequence[dict[str, str]] = ()) -> None:
    """A line of three versions, each from a file; the first file also has the rows of `first`."""
    files.mkdir(parents=True)
    for number, steps in enumerate(STEPS):
        rows = [question(number, index) for index in range(60)] + list(() if number else first)
        file = files / f"night-{number}.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in rows))
        training = TRAINING.model_copy(update={"steps": steps})
        done = retrain(line, str(file), model=str(base), training=training, gate=GateSpec(max_drop=1))
        assert (done.status, done.version) == ("finished", number + 1), done.gate


def question(night: int, index: int) -> dict[str, str]:
    """A row that a small model can learn."""
    thing, colour = list(COLOURS.items())[index % len(COLOURS)]
    return {"prompt": f"{night}.{index}: what colour is {thing}?", "completion": f"It is {colour}."}


def digests(version: LineVersion) -> list[Any]:
    """Its rows, held-out rows and adapters."""
    rows = [[one.train.digest, one.heldout.digest] for one in version.datasets]
    return [rows, [one.digest for one in version.heldout.values()], version.tuned.digest, version.merged.digest]


def test_a_rebuilt_line_is_that_of_a_line_that_never_had_the_row(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version by version it has the same digests; the last one is live, and of the row and what learned it nothing is
    left."""
    home = tmp_path / "home"
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(home))
    three_nights("support", home / "data", base, [ROW])
    lines = Lines(store := Store(settings().store_path))
    old = [lines.version("support", number) for number in (1, 2, 3)]
    assert places(home, SECRET)
    forgotten = data_forget([SECRET], settings(), plan=False)
    done = rebuild("support", forgotten.identities, forgotten.seen, settings())
    assert (done.error, done.reason, done.left, done.live) == (None, None, [], True)
    assert (done.versions, done.rebuilt, lines.champion("support")) == ([1, 2, 3], [4, 5, 6], 6)
    new = [lines.version("support", number) for number in (4, 5, 6)]
    assert [one.parent for one in new] == [None, 4, 5]
    assert lines.names() == ["support"] and check(settings())[1] == [] and places(home, SECRET) == set()
    gone = {one.merged.digest for one in old}
    assert all(store.was_removed(digest) and not store.layout.artifact(digest).exists() for digest in gone)
    kept = {run["run_id"]: run for run in tracking.list_runs(settings(), tracking.RunFilter(), limit=20)}
    assert {one.run_id for one in [*old, *new]} <= kept.keys()
    sent = {file_digest(path) for path in home.glob("mlruns/*/*/artifacts/merged/artifact.json")}
    assert sent == {one.merged.digest for one in new}, "MLflow has the new adapters, and none of the old"
    again = rebuild("support", forgotten.identities, forgotten.seen, settings())
    assert (again.live, again.versions, lines.champion("support")) == (True, [1, 2, 3], 6)
    three_nights("control", tmp_path / "elsewhere", base)
    control = [lines.version("control", number) for number in (1, 2, 3)]
    assert [digests(one) for one in new] == [digests(one) for one in control]
    assert all(digests(one) != digests(other) for one, other in zip(old, control, strict=True))


def test_a_killed_rebuild_is_resumed_by_any_run_of_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL while it trains; `resume` of the run that it was in does the rest, and nothing of the row is left."""
    home = tmp_path / "home"
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(home))
    one_night("support", home / "data", base)
    store = Store(settings().store_path)
    run_id = killed(home, store)
    capsys.readouterr()
    assert main.main(["resume", run_id, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["line"], done["versions"], done["rebuilt"], done["live"]) == ("support", [1], [2], True)
    lines = Lines(store)
    assert lines.names() == ["support"] and lines.champion("support") == 2 and places(home, SECRET) == set()
    assert store.was_removed(lines.version("support", 1).merged.digest)


def one_night(line: str, files: Path, base: Path) -> None:
    """A line of one version, which has learned the row."""
    files.mkdir(parents=True)
    rows = [*(question(0, index) for index in range(60)), ROW]
    (files / "night.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    training = TRAINING.model_copy(update={"steps": STEPS[-1]})
    done = retrain(line, str(files / "night.jsonl"), model=str(base), training=training, gate=GateSpec(max_drop=1))
    assert done.status == "finished", done.gate


def killed(home: Path, store: Store) -> str:
    """Forget the row and rebuild in a process of its own, and kill that as soon as a run of the rebuild has begun."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    own |= {"BACKPROPAGATE_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", "data", "forget", SECRET, "--rebuild"]
    with (home / "forget.log").open("wb") as log, subprocess.Popen(command, env=own, stdout=log, stderr=log) as process:
        wait_until(lambda: bool(of_rebuild(store)) or process.poll() is not None, 300, "run of the rebuild")
        process.kill()
    [run_id] = of_rebuild(store)
    return run_id


def of_rebuild(store: Store) -> list[str]:
    """The runs of rebuilds."""
    begun = ((run.run_id, json.loads(run.spec.read_bytes())["spec"]["line"]) for run in store.layout.begun())
    return [run_id for run_id, line in begun if REBUILD.search(line)]
