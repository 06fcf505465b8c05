"""PostgreSQL, Redis, Prefect, its services, MLflow and a worker as docker-compose.yml has them, without containers.

`make services` fails where a program is missing; otherwise the tests say which, and are skipped.
"""

import base64
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backprop_core import nano
from tests.services.composed import Composed, composed, missing
from tests.wire.prefect_server import PrefectServer, wait_until

SECRETS = {
    "POSTGRES_PASSWORD": "horse",
    "PREFECT_AUTH_STRING": "team:battery staple",
    "MLFLOW_USERNAME": "team",
    "MLFLOW_PASSWORD": "correct horse battery",
    "MLFLOW_SECRET_KEY": "0123456789abcdef0123456789abcdef",
}
JOB = """
model: {{name: {base}}}
datasets: [{{path: {rows}}}]
training: {{steps: 2, lora: {{rank: 4}}}}
evaluation: {{heldout_max: 5}}
min_new_rows: 1
schedule: {{cron: "* * * * *"}}
"""
LACKS = missing()
MESSAGE = f"there is no {', '.join(LACKS)}; Debian: apt-get install postgresql redis-server; pip install .[services]"
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(LACKS) and "SERVICES" not in os.environ, reason=MESSAGE),
]


@pytest.fixture(scope="module")
def running() -> Iterator[Composed]:
    """All of it, in the order of `depends_on`."""
    assert not LACKS, MESSAGE
    place = Path(tempfile.mkdtemp(prefix="services-"))
    place.chmod(0o755)  # PostgreSQL may run as another user
    with composed(place, SECRETS) as services:
        services.postgres()
        redis = services.start("redis", "--port", services.ports["6379"], "--bind", "127.0.0.1")
        services.healthy("redis", redis)
        mlflow = services.start("mlflow", f"--port={services.ports['5000']}")
        prefect = services.start("prefect", "--port", services.ports["4200"])
        services.healthy("prefect", prefect)
        services.healthy("services", services.start("services"))
        services.healthy("mlflow", mlflow)
        assert services.start("deploy").wait(300) == 0, (place / "deploy.log").read_text()
        services.healthy("worker", services.start("worker"))
        yield services
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def server(running: Composed) -> PrefectServer:
    """Prefect, with the password."""
    login = "Basic " + base64.b64encode(SECRETS["PREFECT_AUTH_STRING"].encode()).decode()
    api = f"http://127.0.0.1:{running.ports['4200']}/api"
    return PrefectServer(api, {}, {"Authorization": login}).with_token()


@pytest.fixture(scope="module")
def trained(running: Composed, server: PrefectServer) -> str:
    """The id of a flow run that the worker did, a training."""
    place = running.place / "datasets"
    base = nano.build(place / "base")
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(40, seed=1)))
    training = {"steps": 2, "lora": {"rank": 4}}
    parameters = {"data": str(rows), "model": str(base), "training": training, "evaluation": {"heldout_max": 5}}
    status, flow_run = server.create_run("train/train-once", parameters)
    assert status == 201
    done = server.finished(flow_run["id"], 900)
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    return str(flow_run["id"])


def test_a_run_goes_through_all_of_it(running: Composed, server: PrefectServer, trained: str) -> None:
    """A training that the worker does: recorded in both databases of PostgreSQL, its files with MLflow."""
    result = json.loads(server.artifact(trained, "backprop-result").strip("`json \n"))
    assert running.query("prefect", f"SELECT state_type FROM flow_run WHERE id = '{trained}'") == "COMPLETED"
    mlflow_run = result["mlflow_run_id"]
    assert running.query("mlflow", f"SELECT status FROM runs WHERE run_uuid = '{mlflow_run}'") == "FINISHED"
    address = f"http://127.0.0.1:{running.ports['5000']}/api/2.0/mlflow/artifacts/list?run_id={mlflow_run}"
    login = base64.b64encode(f"{SECRETS['MLFLOW_USERNAME']}:{SECRETS['MLFLOW_PASSWORD']}".encode()).decode()
    request = urllib.request.Request(address, headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "result.json" in {file["path"] for file in json.load(answer)["files"]}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address, timeout=60)
    with refused.value as error:
        assert error.code == 401


@pytest.mark.usefixtures("trained")
def test_what_happens_goes_through_redis(server: PrefectServer) -> None:
    """A run's events come to the database by way of Redis and the services' process; so do schedules."""
    body = {"filter": {"event": {"name": ["prefect.flow-run.Completed"]}}, "limit": 5}
    wait_until(lambda: bool(server.call("POST", "/events/filter", body)[1]["events"]), 300, "event in the database")
    deployment = server.deployment("train/train-once")
    schedule = [{"schedule": {"interval": 86400.0}, "active": True}]
    assert server.call("POST", f"/deployments/{deployment['id']}/schedules", schedule)[0] == 201
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}

    def scheduled() -> bool:
        return any(run["auto_scheduled"] for run in server.call("POST", "/flow_runs/filter", wanted)[1])

    wait_until(scheduled, 300, "run of the schedule")


def test_a_schedule_retrains_a_line(running: Composed, server: PrefectServer, trained: str) -> None:
    """A job file that is written now is deployed, and its schedule makes the first version; removed, it stops."""
    place, lines = running.place / "datasets", running.volume("lines") / "lines"
    lines.mkdir()
    running.healthy("lines", running.start("lines"))
    (lines / "nightly.yaml").write_text(JOB.format(base=place / "base", rows=place / "rows.jsonl"))
    wait_until(lambda: server.call("GET", "/deployments/name/retrain/nightly")[0] == 200, 120, "deployment")
    deployment = server.deployment("retrain/nightly")
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}

    def made() -> bool:
        runs = server.call("POST", "/flow_runs/filter", wanted)[1]
        return any(run["auto_scheduled"] and run["state_type"] == "COMPLETED" for run in runs)

    wait_until(made, 900, "scheduled run", running.place / "worker.log")
    (lines / "nightly.yaml").unlink()
    wait_until(lambda: not server.deployment("retrain/nightly")["schedules"], 120, "end of the schedule")
