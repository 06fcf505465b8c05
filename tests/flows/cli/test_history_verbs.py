"""Verbs that show, compare and write the history: without training, from journals as runs leave them."""

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import DatasetSummary, Evaluation, Located, RunRecord, RunResult
from backprop_core.store.artifacts import Store
from flows.cli import comparing, main
from tasks.runs import run_log
from tasks.tracking.journal import Journal
from tests.flows.cli.test_console import drawn

Capture = pytest.CaptureFixture[str]
DIGEST = "ab" * 32
RUNS = {"a1" * 16: (0.5, 9.0), "b2" * 16: (0.9, 3.0), "c3" * 16: (None, 5.0)}  # average, seconds


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with three runs, none of which has trained."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        for run_id, (average, _) in RUNS.items():
            record(run_id, average)
        yield home


def record(run_id: str, average: float | None) -> None:
    """A run as its journal has it, and its log in the store."""
    layout = Store(settings().store_path).layout.run(run_id)
    layout.root.mkdir(parents=True)
    with Journal(settings().journal_path, run_id) as journal, run_log.kept(layout.log):
        logging.getLogger("tasks").warning("run %s says hf_%s", run_id[:4], "a1B2c3D4" * 4)
        journal.start(line=f"line-{run_id[0]}", name="train", params={"steps": "3"})
        if average is not None:
            journal.metrics(1, {"average": average, "loss": 1.5})
        journal.document("log.json", run_log.to_send(layout.log))
        journal.result(result(run_id, average))


def result(run_id: str, average: float | None) -> RunResult:
    """What the run made, as `show-run` shows it."""
    dataset = DatasetSummary(name="night", task="night", digest=DIGEST, train_rows=9, heldout_rows=1, dropped={})
    located = Located(digest=DIGEST, path="/a")
    ran = RunRecord(
        run_id=run_id,
        dataset=dataset,
        tuned=located,
        merged=located,
        steps=3,
        tokens=100,
        seconds=RUNS[run_id][1],
        train_loss=0.5,
        cached=False,
        accepted=True,
    )
    found = average and Evaluation(
        tasks=["night"],
        watch=[],
        metric="token_accuracy",
        matrix=[[average]],
        loss=[[1.0]],
        exact_match=[[0.0]],
        base=[0.1],
        base_exact_match=[0.0],
        average=average,
        backward_transfer=None,
        forgetting=[None],
    )
    spec: dict[str, Any] = {"training": {"steps": 3, "seed": int(run_id[1])}, "datasets": [{"path": "night.jsonl"}]}
    fields: dict[str, Any] = {"evaluation": found or None, "runs": [ran], "spec": spec}
    return RunResult(run_id=run_id, line=f"line-{run_id[0]}", status="finished", **fields)


def said(words: list[str], capsys: Capture) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main.main(words)
    return status, *capsys.readouterr()


def listed(words: list[str], capsys: Capture) -> list[str]:
    status, out, _ = said(["list-runs", "--json", *words], capsys)
    assert status == 0
    return [run["run_id"][:2] for run in json.loads(out)]


def test_the_list_is_sorted(history: Path, capsys: Capture) -> None:
    """Newest first unless another order is named; runs without the figure come last; the limit counts after that."""
    assert listed([], capsys) == ["c3", "b2", "a1"]
    assert listed(["--sort", "average"], capsys) == ["b2", "a1", "c3"]
    assert listed(["--sort", "line", "--limit", "2"], capsys) == ["a1", "b2"]
    assert said(["list-runs", "--sort", "size"], capsys)[0] == 1


def test_a_run_has_a_log(history: Path, capsys: Capture) -> None:
    """`logs` prints what the run said, without secrets, also where only MLflow has it; a run without one says so."""
    status, out, _ = said(["logs", "a1"], capsys)
    assert status == 0 and "warning" in out and "run a1a1 says ***" in out
    log = Store(settings().store_path).layout.run("a1" * 16).log
    kept = log.read_bytes()
    log.unlink()
    [line] = json.loads(said(["logs", "a1", "--json"], capsys)[1])
    assert line["message"] == "run a1a1 says ***" and line["level"] == "warning"
    log.write_bytes(kept + b'{"half": ')
    assert len(json.loads(said(["logs", "a1", "--json"], capsys)[1])) == 1
    assert said(["logs", "ff"], capsys)[0] == 1


def test_following_a_run_that_has_ended(history: Path, capsys: Capture) -> None:
    """Its log goes to stderr, then the result to stdout."""
    status, out, err = said(["show-run", "b2", "--follow", "--json"], capsys)
    assert (status, json.loads(out)["run_id"]) == (0, "b2" * 16) and "run b2b2 says" in err


def test_a_log_never_costs_the_run(tmp_path: Path) -> None:
    """A log that cannot be opened, or is too long, is given up; an error within is kept and passed on."""
    with run_log.kept(tmp_path / "none" / "log"):
        logging.getLogger("tasks").warning("unheard")
    with pytest.raises(ValueError), run_log.kept(tmp_path / "log"):
        raise ValueError("bad \udcff")
    [line] = run_log.read(tmp_path / "log")[0]
    assert line.level == "error" and line.message.startswith("ValueError: bad")
    with pytest.MonkeyPatch.context() as patch, run_log.kept(tmp_path / "long"):
        patch.setattr(run_log, "MOST", 10)
        for _ in range(3):
            logging.getLogger("tasks").warning("again")
    assert len(run_log.read(tmp_path / "long")[0]) == 1


def test_two_runs_side_by_side(history: Path, capsys: Capture) -> None:
    """Fields that differ, the same data, each task's last score and its difference, both matrices."""
    found = comparing.RunsCompared.model_validate_json(said(["diff-runs", "a1", "b2", "--json"], capsys)[1])
    assert [(each.field, each.a, each.b) for each in found.spec] == [("training.seed", 1, 2)]
    assert [each.same for each in found.data] == [True]
    [score] = found.scores
    assert score.difference == pytest.approx(0.4) and found.a.average == 0.5
    lines = drawn(comparing.text(found, result("a1" * 16, 0.5), result("b2" * 16, 0.9)))
    assert max(map(len, lines)) <= 80 and "+40.0 points" in "\n".join(lines)
    assert "50.0 %" in lines[1] and "90.0 %" in lines[2]  # beside the runs
    alone = comparing.compared(result("a1" * 16, 0.5), result("c3" * 16, None))
    assert alone.scores[0].b is None and alone.scores[0].difference is None


def test_the_history_as_rows(history: Path, tmp_path: Path, capsys: Capture) -> None:
    """JSON lines on stdout; CSV and Parquet in a file have the same rows, with parameters and metrics as columns."""
    status, out, _ = said(["export-runs"], capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [row["run_id"][:2] for row in rows] == ["c3", "b2", "a1"]
    assert rows[1]["params"]["steps"] == "3" and rows[1]["metrics"]["average"] == 0.9
    table, columns = tmp_path / "runs.csv", tmp_path / "runs.parquet"
    assert said(["export-runs", "--format", "csv", "--output", str(table)], capsys)[0] == 0
    with table.open(newline="") as file:
        read = [*csv.DictReader(file)]
    assert [row["metric.average"] for row in read] == ["", "0.9", "0.5"] and read[0]["param.steps"] == "3"
    assert said(["export-runs", "--format", "parquet", "--output", str(columns), "--line", "line-b"], capsys)[0] == 0
    from pyarrow import parquet

    [row] = parquet.read_table(columns).to_pylist()
    assert (row["average"], row["param.steps"], row["metric.loss"]) == (0.9, "3", 1.5)
    assert said(["export-runs", "--format", "parquet"], capsys)[0] == 1
    assert said(["export-runs", "--output", str(tmp_path)], capsys)[0] == 1
    status, _, err = said(["export-runs", "--output", "/dev/null"], capsys)
    assert status == 1 and "no regular file" in err and Path("/dev/null").is_char_device()
