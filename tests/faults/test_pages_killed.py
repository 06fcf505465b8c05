"""SIGKILL of each process of `backprop serve` while a page is open: it says so, recovers, and each click is one run.

Only where BACKPROP_FAULTS is set, as in `make faults`.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from backprop_core.runtime.settings import Settings
from tests.faults.hold import Hold
from tests.faults.test_at_once import write_line
from tests.faults.test_outage import steps_by_run
from tests.faults.test_serve_killed import kill_serve_alone, process
from tests.flows.server.web.conftest import LineMaker
from tests.wire.prefect_server import FINAL, Served, served, wait_until

LINE, AWAY = "/lines/support", "Not known now"
MINUTES = 300  # seconds for a part to come back on a machine that does other things, too
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a line of one version, whose job fails at once: there are no rows."""
    home = tmp_path / "home"
    LineMaker(Settings(home=home)).version(1, 0.8)
    (home / "lines").mkdir()
    job = {"line": "support", "datasets": [{"path": str(home / "data" / "support.jsonl")}]}
    (home / "lines" / "support.yaml").write_text(json.dumps(job))
    return home


@contextmanager
def opened(service: Served) -> Iterator[Callable[[str], httpx.Response]]:
    """A browser that has opened the line's page; calling it presses a button of that page."""
    where = service.addresses["page"]
    with httpx.Client(base_url=where, timeout=60, headers={"Origin": where}) as browser:
        [token] = {*re.findall('name="token" value="([0-9a-f]+)"', browser.get(LINE).text)}
        yield lambda path: browser.post(path, data={"token": token})


def shown(service: Served, path: str) -> str:
    """A page, whatever else is away."""
    return httpx.get(service.addresses["page"] + path, timeout=60).raise_for_status().text


def part(service: Served, words: str) -> psutil.Process:
    """A process of it. One that is suspended is away for sure: one that is killed may be back within a second."""
    every = psutil.Process(service.process.pid).children()
    [found] = [child for child in every if words in " ".join(child.cmdline())]
    return found


def runs(service: Served) -> list[dict[str, Any]]:
    """The flow runs of the line that were asked for."""
    wanted = {"deployments": {"name": {"any_": ["support"]}}}
    found = service.prefect.with_token().call("POST", "/flow_runs/filter", wanted)[1]
    return [run for run in found if not run["auto_scheduled"]]


def ended(service: Served, count: int) -> bool:
    """Whether so many runs were asked for and all have ended."""
    states = [run["state_type"] for run in runs(service)]
    return len(states) == count and set(states) <= FINAL


def test_each_part_dies_while_the_page_is_open(home: Path) -> None:
    """MLflow, Prefect, the worker: the page says what is missing, it comes back, and no click is lost or doubled."""
    with served(home) as service, opened(service) as press:
        mlflow = part(service, "server_main mlflow")
        mlflow.suspend()
        assert AWAY in shown(service, "/history") and AWAY not in shown(service, LINE)
        mlflow.kill()
        wait_until(lambda: AWAY not in shown(service, "/history"), MINUTES, "history")

        prefect = part(service, "server_main prefect")
        prefect.suspend()
        assert press(f"{LINE}/retrain").status_code == 503
        text = shown(service, LINE)
        assert AWAY in text and "Version 1 is live" in text
        prefect.kill()
        wait_until(lambda: AWAY not in shown(service, LINE), MINUTES, "blocks of Prefect")
        assert runs(service) == []
        assert [press(f"{LINE}/retrain").status_code for _ in range(3)] == [303, 409, 409]
        wait_until(lambda: ended(service, 1), MINUTES, "end of the run")

        part(service, "flow_worker").kill()
        wait_until(lambda: "worker restarting" in shown(service, LINE), 30, "word about the worker")
        [failed] = runs(service)
        assert [press(f"/runs/{failed['id']}/retry").status_code for _ in range(2)] == [303, 409]
        wait_until(lambda: ended(service, 1), MINUTES, "end of the run that was tried again")
        assert runs(service)[0]["run_count"] == failed["run_count"] + 1


def begun(service: Served, press: Callable[[str], httpx.Response], hold: Hold) -> None:
    """One click begins a retrain, which is held at its third step."""
    assert press(f"{LINE}/retrain").status_code == 303
    hold.reached(lambda: not ended(service, 1))
    assert "since" in shown(service, LINE) and press(f"{LINE}/retrain").status_code == 409


def assert_made_once(service: Served, home: Path) -> None:
    """The one run that was asked for made version 1, and MLflow has each of its steps once."""
    wait_until(lambda: "Version 1 is live" in shown(service, LINE), MINUTES, "version that is live")
    wait_until(lambda: ended(service, 1), MINUTES, "end of the run")
    assert [path.stem for path in home.glob("store/lines/support/versions/*.json")] == ["000001"]
    wait_until(lambda: [set(each.values()) for each in steps_by_run(home).values()] == [{1}], 60, "all steps, once")


def test_the_training_dies_while_the_page_is_open(world: Path, tmp_path: Path) -> None:
    """SIGKILL of the process that trains: nobody presses anything, and the run that was asked for makes the version."""
    hold, home = Hold(tmp_path / "hold", training=1), tmp_path / "home"
    write_line(home, "support", world / "base", 1, "")
    told = {"BACKPROPAGATE_ALLOWED_PATHS": str(world.parent), **hold.environment}
    with served(home, **told) as service, opened(service) as press:
        begun(service, press, hold)
        process(service, "backprop_core.worker.main").kill()
        hold.let_go()
        assert_made_once(service, home)
        [run] = runs(service)
        assert run["state_type"] == "COMPLETED" and "None that Prefect knows of" in shown(service, LINE)


def test_serve_itself_dies_while_the_page_is_open(world: Path, tmp_path: Path) -> None:
    """SIGKILL of `serve` in a training: started again it has the same address, its page says what crashed, and Retry
    continues that run, once."""
    hold, home = Hold(tmp_path / "hold", training=1), tmp_path / "home"
    write_line(home, "support", world / "base", 1, "")
    told = {"BACKPROPAGATE_ALLOWED_PATHS": str(world.parent), **hold.environment}
    with served(home, **told) as service, opened(service) as press:
        begun(service, press, hold)
        kill_serve_alone(service)
        with pytest.raises(httpx.ConnectError):
            shown(service, LINE)
    with served(home, **told) as again, opened(again) as press:
        assert again.addresses["page"] == service.addresses["page"]
        wait_until(lambda: "Retry" in shown(again, LINE), MINUTES, "word about the run that crashed")
        [crashed] = runs(again)
        assert crashed["state_type"] == "CRASHED"
        assert [press(f"/runs/{crashed['id']}/retry").status_code for _ in range(2)] == [303, 409]
        assert_made_once(again, home)
