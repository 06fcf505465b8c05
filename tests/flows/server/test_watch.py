"""New data starts a line's retrain: once a state, whoever looks, and only when nothing is being written."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from backprop_core.errors import DeploymentMissing, PrefectUnreachable
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import DatasetSpec, LineSpec
from flows.cli import main
from flows.server import deploy, watch
from flows.server.automations import announce
from flows.server.watch import Watch, ask
from tests.flows.cli.test_cli import same_signals
from tests.wire.prefect_server import ROOT, wait_until

LINE = "watched"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def drops(tmp_path: Path) -> Path:
    (tmp_path / "drops").mkdir()
    return tmp_path / "drops"


@pytest.fixture
def job(drops: Path) -> LineSpec:
    return LineSpec.model_validate({"line": LINE, "datasets": [{"path": str(drops)}], "poll_seconds": 1})


@pytest.fixture
def client(prefect: None, job: LineSpec) -> Iterator[SyncPrefectClient]:
    """A server with the line's deployment."""
    deploy.deploy(Settings(namespace="watchtest"), {LINE: job}, pool="pool-of-watchtest", dry_run=False)
    with get_client(sync_client=True) as client:
        yield client
        client.delete_deployment(client.read_deployment_by_name(f"retrain/{LINE}").id)


def runs(client: SyncPrefectClient) -> list[FlowRun]:
    """What was asked for of the line's deployment."""
    return client.read_flow_runs(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[LINE])))


@pytest.mark.parametrize(
    ("seen", "handed"),
    [
        ("a", ""),
        ("aa", "a"),
        ("aaaa", "a"),
        ("aab", "a"),
        ("abcabc", ""),  # still being written
        ("aabb", "ab"),
        ("aabbaa", "aba"),
        ("aabaa", "a"),
    ],
)
def test_a_state_is_handed_on_when_it_stays(job: LineSpec, seen: str, handed: str) -> None:
    """Two looks in a row have to see the same, and another than what was handed on last."""
    watch, taken = Watch(job), ""
    for state in seen:
        if watch.settled(state):
            watch.handed = state
            taken += state
    assert taken == handed


def test_a_file_in_the_directory_makes_one_run(client: SyncPrefectClient, job: LineSpec, drops: Path) -> None:
    """One run of the line's deployment, as its file says it; another watcher, or the same one again, makes none."""
    watch = Watch(job)
    watch.look()
    assert runs(client) == []
    (drops / "a.jsonl").write_text('{"text": "a"}')
    for each in (watch, watch, watch, other := Watch(job), other, other):
        each.look()
    [run] = runs(client)
    assert run.state and run.state.is_scheduled() and {"new-data", "watchtest"} <= set(run.tags)
    assert run.parameters["line"] == LINE and run.parameters["data"]["path"] == str(drops)
    (drops / "b.jsonl").write_text('{"text": "b"}')
    for each in (watch, other, watch, other):
        each.look()
    assert len(runs(client)) == 2


def test_the_verb_watches_until_it_is_stopped(
    client: SyncPrefectClient, job: LineSpec, drops: Path, tmp_path: Path
) -> None:
    """`backprop watch` says what it looks at, asks the named server for the run, and ends well with a signal."""
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / f"{LINE}.yaml").write_text("datasets: [{path: drops}]\npoll_seconds: 1\n")
    told = {
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "PYTHONPATH": str(ROOT),
        "BACKPROPAGATE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "flows", "watch", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | told, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and json.loads(process.stdout.readline()) == {LINE: str(drops)}
            (drops / "a.jsonl").write_text('{"text": "a"}')
            wait_until(lambda: len(runs(client)) == 1, 120, "run")
        finally:
            process.terminate()
    assert process.returncode == 0


def test_what_cannot_be_read_is_said_once(
    client: SyncPrefectClient, job: LineSpec, drops: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for as long as it is the same; then it goes on, and says the next one."""
    watch = Watch(job)
    with caplog.at_level(logging.WARNING, "flows.server.watch"):
        for _ in range(3):
            watch.look()
        assert [record.getMessage() for record in caplog.records] == [
            f"line {LINE} waits for new data: [INPUT_NO_ROWS] {drops} has no row files yet; add one"
        ]
        (drops / "a.jsonl").write_text('{"text": "a"}')
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
            for _ in range(3):
                watch.look()
    assert len(caplog.records) == 2 and "[DEP_PREFECT_UNREACHABLE]" in caplog.records[1].getMessage()
    assert runs(client) == []
    watch.look()
    assert len(runs(client)) == 1


def test_a_line_without_a_deployment(prefect: None) -> None:
    """It has to be deployed first, and that is said."""
    with pytest.raises(DeploymentMissing, match="retrain/nowhere"):
        ask("nowhere", "a")


class Foreign(Exception):
    """What some package of a protocol raises."""


class Flaky(AbstractFileSystem):  # type: ignore[misc]  # it has no types
    """A remote file system whose errors are its own."""

    protocol = "flaky"
    looks = 0

    def ukey(self, path: str) -> str:
        Flaky.looks += 1
        raise Foreign("no login: horse staple")


def test_what_nobody_knows_ends_no_watch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, job: LineSpec
) -> None:
    """An exception that only a protocol's package has is logged, and it is looked again; another thread's is not."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(watch, "AGAIN", 0.01)
    others: list[threading.ExceptHookArgs] = []
    before = others.append
    monkeypatch.setattr(threading, "excepthook", before)
    with watch.watching([job.model_copy(update={"datasets": [DatasetSpec(path="flaky://bucket/a.jsonl")]})]):
        wait_until(lambda: Flaky.looks > 2, 120, "look after the first")
        stranger = threading.Thread(target=lambda: 1 // 0)
        stranger.start()
        stranger.join()
    assert threading.excepthook == before and [args.thread for args in others] == [stranger]
    first = caplog.records[0]
    assert f"line {LINE}: its watch has failed" in first.getMessage() and first.exc_info
    assert first.exc_info[0] is Foreign


def test_only_changed_watches_begin_again(job: LineSpec) -> None:
    """When a job file changes, its watch begins again with the new job; the others go on, and a removed one ends."""
    slow = job.model_copy(update={"poll_seconds": 1000.0})
    lines = {name: slow.model_copy(update={"line": name}) for name in ("same", "changed", "removed")}
    with watch.watching(lines.values()) as watches:
        before = dict(watches._running)
        lines["changed"] = lines["changed"].model_copy(update={"poll_seconds": 2000.0})
        watches.update([lines["same"], lines["changed"], slow])
        after = dict(watches._running)
        assert after.keys() == {"same", "changed", LINE} and after["same"] is before["same"]
        assert after["changed"].job.poll_seconds == 2000 and not before["removed"].thread.is_alive()
    assert not any(running.thread.is_alive() for running in after.values())


def test_a_server_that_does_not_answer_has_a_code() -> None:
    """Whoever talks to Prefect's server hears of one that is away by our code, not by its client's errors."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), pytest.raises(PrefectUnreachable):
        announce("watchtest", LINE, {})


@pytest.mark.usefixtures(same_signals.__name__)
def test_what_watch_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A file that says how often to look, and a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "lines").mkdir()
    file = tmp_path / "lines" / "a.yaml"
    file.write_text("datasets: [{path: a}]")
    assert main.main(["watch"]) == 1 and "[CONFIG_INVALID] no job file sets poll_seconds" in capsys.readouterr().err
    file.write_text("datasets: [{path: a}]\npoll_seconds: 5")
    assert main.main(["watch"]) == 2 and "[DEP_PREFECT_UNREACHABLE]" in capsys.readouterr().err
