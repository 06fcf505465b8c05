"""The deployments as other services use them: a real server, a real worker, nothing but JSON over HTTP."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.deploy import FLOWS
from tests.wire.prefect_server import PrefectServer, prefect_server, process_worker

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = {name: f"flows.{name.replace('-', '_')}:{name.replace('-', '_')}" for name in FLOWS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server with our deployments, and a worker that carries them out."""
    home = tmp_path_factory.mktemp("prefect")
    settings = {"BACKPROPAGATE_HOME": str(home / "backprop"), "OMP_NUM_THREADS": "1"}
    with (
        prefect_server(home, auth="team:horse staple", **settings) as server,
        process_worker(server, "backprop", home / "worker.log"),
    ):
        deploy = [sys.executable, "-m", "flows", "deploy"]
        subprocess.run(deploy, env={**server.environment, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        yield server


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
    deployment = server.deployment(f"{flow}/default")
    assert (deployment["entrypoint"], deployment["path"], deployment["pull_steps"]) == (entrypoint, None, [])
    assert deployment["work_pool_name"] == "backprop"
    limit = deployment["global_concurrency_limit"]
    assert (limit and limit["limit"]) == (1 if flow in ("train", "multi-run", "retrain") else None)


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


def test_result_is_read_back_from_the_artifact(server: PrefectServer, parameters: dict[str, Any]) -> None:
    """The worker carries out a flow run, and its result is JSON in the artifact `backprop-result`."""
    status, flow_run = server.create_run("multi-run/default", parameters)
    assert status == 201, flow_run
    state = server.finished(flow_run["id"])["state"]
    assert state["type"] == "COMPLETED", state
    text = server.artifact(flow_run["id"], "backprop-result")
    result = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert (result["status"], result["error"]) == ("finished", None)
    [run] = result["runs"]
    assert (run["steps"], run["dataset"]["task"]) == (2, "task0")
    assert run["merged"] == result["merged"] and run["merged"]["digest"] == run["tuned"]["digest"]
    assert result["spec"]["training"]["steps"] == 2 and result["mlflow_run_id"]
    check_artifact(**result["merged"])


def test_strangers_are_refused(server: PrefectServer) -> None:
    """No request without the password, and nothing but reading without a token that another site cannot have."""
    stranger = replace(server, headers={})
    assert stranger.call("GET", "/deployments/name/train/default")[0] == 401
    assert stranger.call("GET", "/csrf-token?client=stranger")[0] == 401
    other_site = replace(server, headers={"Authorization": server.headers["Authorization"]})
    assert other_site.call("POST", "/deployments/filter", {})[0] == 403
    assert server.call("POST", "/deployments/filter", {})[0] == 200


def check_artifact(digest: str, path: str) -> None:
    """The digest is that of the list of files, and the list's digests are those of the files."""
    manifest = (Path(path) / "artifact.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == digest
    files = json.loads(manifest)["files"]
    assert files == [[name, len(content := (Path(path) / name).read_bytes()), sha256(content)] for name, *_ in files]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {name for name, *_ in files}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
