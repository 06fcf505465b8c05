"""Job files are followed while the server runs: no restart for a new, a changed or a removed line."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import Settings
from flows.server.line_files import LineFiles
from flows.server.watch import watching
from tests.flows.conftest import Kept
from tests.wire.prefect_server import ROOT, wait_until

NIGHTLY = 'datasets: [{path: /data/a.jsonl}]\nschedule: {cron: "0 3 * * *"}\n'
LINE = "followed"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with lines/, where this process is."""
    (tmp_path / "lines").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
        for flow in ("retrain", "drift"):
            try:
                client.delete_deployment(client.read_deployment_by_name(f"{flow}/{LINE}").id)
            except ObjectNotFound:
                continue


def crons(client: SyncPrefectClient) -> list[str] | None:
    """The schedules of the line's deployment; None without a deployment."""
    try:
        schedules = client.read_deployment_by_name(f"retrain/{LINE}").schedules
    except ObjectNotFound:
        return None
    return [schedule.schedule.cron for schedule in schedules]


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged of the files."""
    logger, kept = logging.getLogger("flows.server.line_files"), Kept()
    logger.addHandler(kept)
    yield kept.said
    logger.removeHandler(kept)


def test_a_file_is_deployed_when_it_is_written(client: SyncPrefectClient, place: Path, said: list[str]) -> None:
    """A new file makes a deployment, a change moves its schedule, a broken one changes nothing and is said once."""
    file, config = place / "lines" / f"{LINE}.yaml", Settings(namespace="followtest", home=place)
    with watching([]) as watches:
        lines = LineFiles(config, "pool-of-followtest", watches)
        lines.look()
        assert crons(client) is None and lines.update() == []
        file.write_text(NIGHTLY)
        lines.look()
        assert crons(client) == ["0 3 * * *"]
        file.write_text(NIGHTLY.replace("0 3", "30 4") + "poll_seconds: 60\n")
        lines.look()
        assert crons(client) == ["30 4 * * *"] and watches.running == [LINE]
        file.write_text(NIGHTLY + "scheduel: now\n")
        with pytest.raises(ConfigInvalid):
            lines.update()
        for _ in range(2):
            lines.look()
        assert crons(client) == ["30 4 * * *"] and sum("scheduel" in each for each in said) == 1
        file.unlink()
        lines.look()
        assert crons(client) == [] and not watches.running


def test_the_verb_follows_until_it_is_stopped(client: SyncPrefectClient, place: Path) -> None:
    """`backprop deploy --follow` says what it deployed, goes on with what is written later, and ends with a signal."""
    told = {
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "PYTHONPATH": str(ROOT),
        "BACKPROPAGATE_HOME": str(place),
        "BACKPROPAGATE_NAMESPACE": "followtest",
    }
    command = [sys.executable, "-m", "flows", "deploy", "--pool", "pool-of-followtest", "--follow", "--json"]
    with subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and json.loads(process.stdout.readline())
            (place / "lines" / f"{LINE}.yaml").write_text(NIGHTLY)
            wait_until(lambda: crons(client) == ["0 3 * * *"], 120, "deployment of the new file")
            (place / "lines" / f"{LINE}.yaml").unlink()
            wait_until(lambda: crons(client) == [], 120, "end of its schedule")
        finally:
            process.terminate()
    assert process.returncode == 0
