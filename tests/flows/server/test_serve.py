"""A served home as browsers, other services and strangers see it: nothing but HTTP."""

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from backprop_core.errors import ConfigInvalid, InputNotFound
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from examples.service import app
from flows.server.deployment_names import path_of
from flows.server.serve import password
from tests.wire.prefect_server import PrefectServer, Served, served, wait_until

ROOT = Path(__file__).parents[3]
JOB = """
model: {{name: {base}}}
datasets: [{{path: night.jsonl}}]
training: {{steps: 2, lora: {{rank: 4}}}}
evaluation: {{heldout_max: 5}}
min_new_rows: 1
schedule: {{cron: "0 3 * * *"}}
"""
UUID = "00000000-0000-0000-0000-000000000000"
DEPLOYMENTS = {name: f"flows.{name.replace('-', '_')}:{name.replace('-', '_')}" for name in FLOWS}
DEPLOYMENTS["drift"] = "flows.staleness:drift"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A home with a line's file, and with that of a line whose data is looked at."""
    home = tmp_path_factory.mktemp("served")
    (home / "lines").mkdir()
    (home / "lines" / "support.yaml").write_text(JOB.format(base=base))
    (home / "lines" / "watched.yaml").write_text("datasets: [{path: drops.jsonl}]\npoll_seconds: 1\n")
    return home


@pytest.fixture(scope="module")
def service(home: Path, base: Path, data: list[str]) -> Iterator[Served]:
    """Everything that `backprop serve` starts, with a password."""
    allowed = f"{base}:{Path(data[0]).parent}"
    settings = {
        "BACKPROPAGATE_ALLOWED_PATHS": allowed,
        "BACKPROPAGATE_ALLOWED_HOSTS": "runs.example",
        "OMP_NUM_THREADS": "1",
    }
    with served(home, user="team", password="horse staple", **settings) as service:
        yield service


@pytest.fixture(scope="module")
def server(service: Served) -> PrefectServer:
    """Its Prefect server."""
    return service.prefect


@pytest.fixture(scope="module")
def parameters(base: Path, data: list[str]) -> dict[str, Any]:
    """The smallest job."""
    return {
        "datasets": [{"path": data[0]}],
        "model": str(base),
        "training": {"steps": 2, "lora": {"rank": 4}},
        "evaluation": {"heldout_max": 5},
    }


def described(schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    """Whether a form shows help on a field: its own text, or that of the part that it is."""
    part = definitions.get(schema.get("$ref", "").rpartition("/")[2], {})
    return bool(schema.get("description") or part.get("description"))


@pytest.mark.parametrize("flow", DEPLOYMENTS)
def test_forms_have_help_on_every_field(server: PrefectServer, flow: str) -> None:
    """Every parameter of a deployment, and every field of its parts, says what it means."""
    schema = server.deployment(f"{flow}/default")["parameter_openapi_schema"]
    definitions = schema.get("definitions", {})
    models = [schema, *(part for part in definitions.values() if "properties" in part)]
    silent = [n for m in models for n, field in m["properties"].items() if not described(field, definitions)]
    assert schema["properties"] and silent == []


@pytest.mark.parametrize(("flow", "entrypoint"), DEPLOYMENTS.items())
def test_flows_are_modules_of_the_worker(server: PrefectServer, flow: str, entrypoint: str) -> None:
    """A deployment names a module and fetches nothing: no path of the machine that deployed it is in it."""
    deployment = server.deployment(path_of(flow))
    assert (deployment["entrypoint"], deployment["path"], deployment["pull_steps"]) == (entrypoint, None, [])
    assert deployment["work_pool_name"] == "backprop"
    limit = deployment["global_concurrency_limit"]
    assert (limit and limit["limit"]) == (1 if flow in ("train", "multi-run", "sweep", "bench") else None)


def test_old_names_find_their_deployments(server: PrefectServer) -> None:
    """FLOW/default is the flow's deployment under its name of today, in no list; nothing else is renamed."""
    for flow in FLOWS:
        assert server.deployment(f"{flow}/default")["name"] == FLOWS[flow].deployment
    names = [one["name"] for one in server.call("POST", "/deployments/filter", {})[1]]
    assert sorted(names) == sorted([*(flow.deployment for flow in FLOWS.values()), "support", "watched"])
    assert server.call("GET", "/deployments/name/none/default")[0] == 404
    assert server.call("GET", "/deployments/name/retrain/none")[0] == 404


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training": {"steps": 0}}, "training"),
        ({"training": {"lora": {"rnak": 8}}}, "rnak"),
        ({"datasets": [{"path": "a.jsonl", "rows": "many"}]}, "datasets[0].rows"),
        ({"datasets": None}, "datasets"),
    ],
)
def test_invalid_parameters_are_refused(
    server: PrefectServer, parameters: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    """A flow run that cannot work is refused when it is asked for, with the field's name."""
    status, answer = server.create_run("multi-run/default", parameters | change)
    assert status in (409, 422) and named in answer["detail"]


@pytest.fixture
def client(server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A service without anything of ours."""
    monkeypatch.setenv("PREFECT_API_URL", server.api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:horse staple")
    return TestClient(app)


def test_another_service_retrains_a_line(client: TestClient, server: PrefectServer, data: list[str]) -> None:
    """A service without anything of ours asks once, whatever it sends twice, and reads the result back."""
    text = (ROOT / "examples" / "service.py").read_text()
    assert not re.search(r"^(from|import) (backprop_core|tasks|flows)", text, re.MULTILINE)
    run, again = (ask(client, data[0], key)["run"] for key in ("night-1", "night-1"))
    assert run == again
    assert client.post("/retrain/none", params={"path": "a"}, headers={"Idempotency-Key": "1"}).status_code == 404
    server.finished(run)
    answer = client.get(f"/runs/{run}").json()
    assert answer["state"] == "COMPLETED", answer
    result = answer["result"]
    assert (result["line"], result["error"]) == ("support", None) and result["status"] in ("finished", "rejected")
    [lora_run] = result["runs"]
    assert (lora_run["steps"], lora_run["dataset"]["task"]) == (2, "support")
    assert result["spec"]["training"]["lora"]["rank"] == 4 and result["mlflow_run_id"]
    check_artifact(**result["merged"])


def ask(client: TestClient, path: str, key: str) -> dict[str, Any]:
    """A flow run, as the service tells of it."""
    answer = client.post("/retrain/support", params={"path": path}, headers={"Idempotency-Key": key})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def test_a_key_whose_run_has_failed_is_spent(client: TestClient, server: PrefectServer) -> None:
    """The same key is the failed run and starts nothing; another one tries again."""
    run = ask(client, "/etc/shadow", "night-2")["run"]
    assert server.finished(run)["state_type"] == "FAILED"
    assert ask(client, "/etc/shadow", "night-2") == {"run": run, "state": "FAILED"}
    other = ask(client, "/etc/shadow", "night-2-again")
    assert other["run"] != run and server.finished(other["run"])["state_type"] == "FAILED"


def test_paths_outside_of_the_allowed_directories_are_refused(
    server: PrefectServer, parameters: dict[str, Any], home: Path
) -> None:
    """A run that a deployment started reads and writes only where it may: refused with a code, before any work."""
    reading = server.create_run("multi-run/default", parameters | {"datasets": [{"path": "/etc/passwd"}]})[1]
    writing = server.create_run("export/default", {"ref": "abc", "output": str(home / "elsewhere")})[1]
    assert "[INPUT_PATH_FORBIDDEN] /etc/passwd" in server.finished(reading["id"])["state"]["message"]
    assert "[UI_OUTPUT_DIR_FORBIDDEN]" in server.finished(writing["id"])["state"]["message"]
    assert not (home / "elsewhere").exists()


def test_a_line_of_the_home_is_deployed(server: PrefectServer) -> None:
    """Its file makes the deployment `retrain/support`, with its schedule."""
    deployment = server.deployment("retrain/support")
    assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["0 3 * * *"]


def test_it_looks_for_new_data(server: PrefectServer, home: Path) -> None:
    """A file that comes where a line's file says it, and says how often to look, starts one run of the line."""
    log = home / "worker.log"
    waits = "line watched waits for new data: [INPUT_NOT_FOUND]"
    wait_until(lambda: waits in log.read_text(), 300, "first look", log)
    (home / "drops.jsonl").write_text('{"text": "a"}\n')
    wanted = {"flow_runs": {"tags": {"all_": ["new-data"]}}}
    wait_until(lambda: bool(server.call("POST", "/flow_runs/filter", wanted)[1]), 300, "run", log)
    [run] = server.call("POST", "/flow_runs/filter", wanted)[1]
    assert run["deployment_id"] == server.deployment("retrain/watched")["id"]
    server.finished(run["id"])  # refused: the home is not below the allowed directories
    wait_until(lambda: f"flow run {run['name']} trains the current data" in log.read_text(), 60, "line in the log", log)


def answer(url: str, method: str = "GET", **headers: str) -> int:
    """The status of a request."""
    request = urllib.request.Request(url, b"{}" if method == "POST" else None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_strangers_are_refused(service: Served) -> None:
    """Without the password nothing but health is answered: no route of Prefect's API, no page or route of MLflow's."""
    prefect, mlflow, login = service.addresses["prefect"], service.addresses["mlflow"], service.prefect.headers
    own = {"Authorization": login["Authorization"]}
    with urllib.request.urlopen(urllib.request.Request(f"{prefect}/openapi.json", headers=own), timeout=30) as page:
        routes = {path: set(methods) for path, methods in json.load(page)["paths"].items()}
    assert len(routes) > 100
    answered = {path for path in routes if any(replied(prefect, path, method) for method in routes[path])}
    assert answered <= {"/health", "/ready"}
    assert answer(f"{prefect}/api/csrf-token?client=stranger") == 401
    pages = ["/", "/api/2.0/mlflow/experiments/search", "/ajax-api/2.0/mlflow/runs/search", "/get-artifact", "/graphql"]
    assert {answer(mlflow + page) for page in pages} == {401} == {answer(mlflow + page, "POST") for page in pages}
    assert answer(f"{mlflow}/", **own) == 200 == answer(f"{mlflow}/health") == answer(f"{prefect}/api/health")


def replied(prefect: str, path: str, method: str) -> bool:
    """Whether a route answers a stranger otherwise than that it does not know him, or misses a token."""
    return answer(f"{prefect}/api{re.sub('{.*?}', UUID, path.removeprefix('/api'))}", method.upper()) not in (401, 403)


def test_other_names_and_sites_are_refused(service: Served) -> None:
    """A foreign Host (rebinding) or Origin is refused even with the password; so is a write without a token."""
    own = {"Authorization": service.prefect.headers["Authorization"]}
    for place in (service.addresses["prefect"], service.addresses["mlflow"]):
        assert answer(f"{place}/", Host="evil.example", **own) == 403
        assert answer(f"{place}/api/flows/filter", "POST", Origin="http://evil.example", **own) == 403
        assert answer(f"{place}/", Origin=place, **own) == 200
    assert answer(f"{service.addresses['prefect']}/api/flows/filter", "POST", **own) == 403  # no CSRF token
    assert service.prefect.call("POST", "/deployments/filter", {})[0] == 200
    assert answer(f"{service.addresses['page']}/", Host="evil.example", **own) == 403


def test_pages_talk_to_nobody_else(service: Served) -> None:
    """Both user interfaces are told to send nothing to any other server: Prefect's would send usage data."""
    for place in (service.addresses["prefect"], service.addresses["mlflow"]):
        request = urllib.request.Request(
            f"{place}/", headers={"Authorization": service.prefect.headers["Authorization"]}
        )
        with urllib.request.urlopen(request, timeout=30) as page:
            assert page.headers["Content-Security-Policy"] == "connect-src 'self'"


def test_a_proxys_name_is_known(service: Served) -> None:
    """Behind a proxy a browser reads and writes under its name, with TLS or a port: both servers take the origin."""
    own = {**service.prefect.headers, "Content-Type": "application/json"}
    create = f"{service.addresses['mlflow']}/ajax-api/2.0/mlflow/registered-models/create"
    for host, origin in [("runs.example", "https://runs.example"), ("runs.example:81", "http://runs.example:81")]:
        named = own | {"Host": host, "Origin": origin}
        assert answer(create, "POST", **named) == 400  # it came in, and names no model
        assert answer(f"{service.addresses['prefect']}/api/flows/filter", "POST", **named) == 200
        assert answer(create, "POST", **named | {"Origin": "https://runs.example.evil"}) == 403


def test_the_start_page(service: Served, home: Path) -> None:
    """It lists the lines, links both interfaces, and asks for the password; `/health` says that all lives."""
    own = {"Authorization": service.prefect.headers["Authorization"]}
    start, line = service.addresses["page"], f"{service.addresses['page']}/lines/support"
    assert answer(start) == answer(line) == 401
    text = text_of(start, own)
    assert service.addresses["prefect"] in text and service.addresses["mlflow"] in text and "/lines/support" in text
    assert "Not known now" not in text_of(line, own)  # Prefect asks the page for password and token, too
    with urllib.request.urlopen(f"{service.addresses['page']}/health", timeout=30) as health:
        assert json.load(health) == {"status": "ok", "prefect": True, "mlflow": True, "worker": True}
    assert json.loads((home / "serve.json").read_text()) == service.addresses


def text_of(url: str, headers: dict[str, str]) -> str:
    """A page."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as page:
        return str(page.read().decode())


def test_a_second_one_says_where_the_first_is(service: Served) -> None:
    """One `serve` a home."""
    command = [sys.executable, "-m", "flows", "serve", "--auth", "team"]
    done = subprocess.run(command, env=dict(service.environment), capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert "[STATE_SERVER_ACTIVE]" in done.stderr and service.addresses["page"] in done.stderr


def test_nothing_is_left_of_a_killed_one(service: Served) -> None:
    """What dies is started again on its address; and after SIGKILL of `serve` all of its processes end."""
    server, mlflow, worker = (
        child_of(service, name)
        for name in ("flows.server.server_main prefect", "flows.server.server_main mlflow", "flow_worker")
    )
    mlflow.kill()
    wait_until(lambda: answers(f"{service.addresses['mlflow']}/health"), 60, "MLflow again")
    again = child_of(service, "server_main mlflow")
    assert again.pid != mlflow.pid
    service.process.kill()
    assert psutil.wait_procs([server, again, worker], timeout=30)[1] == []


def test_one_early_death_is_mended_a_second_ends_it(tmp_path: Path) -> None:
    """A worker that dies soon after the start is started again; if that dies at once, too, `serve` ends and says so."""
    with served(tmp_path / "home") as service:
        kill_and_wait(child_of(service, "flow_worker"))
        wait_until(lambda: len(psutil.Process(service.process.pid).children()) == 3, 60, "next worker")
        kill_and_wait(child_of(service, "flow_worker"))
        assert service.process.wait(120) == 2
    assert "[DEP_SERVER_FAILED] worker has died twice in a row" in (tmp_path / "home" / "serve.log").read_text()


def kill_and_wait(process: psutil.Process) -> None:
    """Until `serve` has noticed, too."""
    process.kill()
    assert psutil.wait_procs([process], timeout=60)[1] == []


def child_of(service: Served, words: str) -> psutil.Process:
    children = psutil.Process(service.process.pid).children()
    [found] = [child for child in children if words in " ".join(child.cmdline())]
    return found


def answers(url: str) -> bool:
    try:
        return answer(url) == 200
    except OSError:
        return False


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--auth", "team"], ["--host", "192.0.2.1"]])
def test_without_a_password_it_does_not_start(words: list[str], tmp_path: Path) -> None:
    """What other machines can reach needs a user, and a user a password: from the environment, a file or a prompt."""
    command = [sys.executable, "-m", "flows", "serve", *words]
    environment = os.environ | {"BACKPROPAGATE_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("[INPUT_AUTH_REQUIRED]")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weak", ["", "horse", "finished", "12345678", "pass 1"])
def test_a_weak_password_is_refused(weak: str) -> None:
    """What is too short, or a word, can be guessed, and cannot be blanked in logs."""
    with pytest.raises(ConfigInvalid):
        password("team", "127.0.0.1", Settings(auth_password=weak or " "))


def test_the_password_comes_from_a_file(tmp_path: Path) -> None:
    """A file's one line, without its end; the environment wins; no file there is an error with a code."""
    file = tmp_path / "password"
    file.write_text("from file\n")
    assert password("team", "127.0.0.1", Settings(auth_password_file=file)) == "team:from file"
    assert password("team", "0.0.0.0", Settings(auth_password_file=file, auth_password="x y z 1 2")) == "team:x y z 1 2"
    assert password(None, "localhost", Settings()) is None
    with pytest.raises(InputNotFound):
        password("team", "127.0.0.1", Settings(auth_password_file=tmp_path / "none"))


def check_artifact(digest: str, path: str) -> None:
    """The digest is that of the list of files, and the list's digests are those of the files."""
    manifest = (Path(path) / "artifact.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == digest
    files = json.loads(manifest)["files"]
    assert files == [[name, len(content := (Path(path) / name).read_bytes()), sha256(content)] for name, *_ in files]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {name for name, *_ in files}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
