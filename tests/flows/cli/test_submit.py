"""`--submit`: a flow run of a deployment, with what the run here would have had, and nothing done here."""

import inspect
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from backprop_core.errors import PathForbidden, ServerActive
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import DatasetSpec, LineSpec, RunSpec
from flows.cli import main
from flows.cli.flags import Flags
from flows.parameters import differing, parameters
from flows.registry import load
from flows.server import deploy, serve, submit
from flows.server.deployment_names import path_of
from flows.server.serve import Addresses, alone, running
from tests.flows.cli.test_cli import same_signals

CONFIG = Settings(namespace="submittest")
JOB = LineSpec.model_validate(
    {
        "line": "evening",
        "datasets": [{"path": "/data/night.jsonl"}],
        "training": {"epochs": 5, "lora": {"rank": 4}},
        "gate": {"max_drop": 0.5},
    }
)
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures(same_signals.__name__)


@pytest.fixture(scope="module")
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    """A server with the deployments of one line's file."""
    deploy.deploy(CONFIG, {JOB.line: JOB}, pool="pool-of-submittest", dry_run=False)
    with get_client(sync_client=True) as client:
        yield client
        client.delete_deployment(client.read_deployment_by_name("retrain/evening").id)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no server but the tests' own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def submitted(words: list[str], capsys: Capture) -> dict[str, Any]:
    """What `--submit --json` says."""
    status = main.main([*words, "--submit", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert status == 0, answer
    return dict(answer)


def called(flow: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the flow makes of parameters in JSON: the same as a worker."""
    body = load(flow)
    whole = {name: one.default for name, one in inspect.signature(body.fn).parameters.items()}
    return body.validate_parameters(whole | given)


def test_the_line_of_a_file_runs_with_what_was_asked(client: SyncPrefectClient, place: Path, capsys: Capture) -> None:
    """It waits on the line's own deployment; merged with that one's parameters, ours are those of a run here."""
    (place / "more.jsonl").touch()
    words = ["retrain", "--line", "evening", "--data", "more.jsonl", "--batch-size", "16", "--steps", "3"]
    said = submitted(words, capsys)
    assert said["deployment"] == "retrain/evening" and said["url"].endswith(f"/runs/flow-run/{said['flow_run_id']}")
    run = client.read_flow_run(UUID(said["flow_run_id"]))
    assert run.state and run.state.is_scheduled() and {"submittest", "retrain"} <= set(run.tags)
    here = Flags(line="evening", data=[str(place / "more.jsonl")], batch_size="16", steps="3").spec()
    given = called("retrain", run.parameters)
    assert given["notify"] is None
    assert given | {"notify": []} == called("retrain", parameters("retrain", here, fresh=False))
    assert given["training"].model_fields_set == {"batch_size", "steps"}  # one at its default is asked, too
    assert run.parameters["data"] == {"path": str(place / "more.jsonl")}


def test_a_flow_without_a_file_runs_its_own(client: SyncPrefectClient, place: Path, capsys: Capture) -> None:
    """Other lines, and `train`, are runs of the flow's own; relative paths are this machine's, addresses stay."""
    (place / "model").mkdir()
    words = ["--data", "a.jsonl", "--heldout", "https://example.org/b", "--model", "model", "--fresh"]
    for flow, expected in [("retrain", {"line": "other"}), ("train", {"line": "other"})]:
        said = submitted([flow, "--line", "other", *words], capsys)
        assert said["deployment"] == path_of(flow)
        given = client.read_flow_run(UUID(said["flow_run_id"])).parameters
        data = {"path": str(place / "a.jsonl"), "heldout": "https://example.org/b"}
        assert given == expected | {"data": data, "model": {"name": str(place / "model")}, "fresh": True}


def test_only_what_differs_is_sent() -> None:
    """Nothing where the deployment says it already; its own extras are taken back."""
    whole = parameters("retrain", JOB.run(), fresh=False)
    known = differing(whole, {})
    assert known == deploy.parameters_of(JOB) and differing(whole, known) == {}
    plain = RunSpec(line="evening", datasets=[DatasetSpec(path="/data/night.jsonl")])
    assert differing(parameters("retrain", plain, fresh=False), known | {"run_id": "x"}) == {
        **{"training": {}, "gate": {}, "min_new_rows": 1, "run_id": None}
    }
    assert called("train", differing(parameters("train", plain, fresh=True), {"steps": 9}))["steps"] is None


def test_what_the_server_does_not_have_or_take(client: SyncPrefectClient, capsys: Capture) -> None:
    """A missing deployment and refused parameters have a code and say what to do; nothing is run here."""
    words = ["multi-run", "--data", "a.jsonl", "--submit", "--json"]
    made = client.read_deployment_by_name(path_of("multi-run"))
    schema = {"type": "object", "properties": {"line": {"type": "integer"}}}
    client._client.patch(f"/deployments/{made.id}", json={"parameter_openapi_schema": schema})
    assert refused(words, capsys)["code"] == "DEP_PREFECT_REFUSED"
    client.delete_deployment(made.id)
    error = refused(words, capsys)
    assert error["code"] == "DEP_DEPLOYMENT_MISSING" and "backprop deploy" in error["hint"]


def refused(words: list[str], capsys: Capture) -> dict[str, Any]:
    """The error of a command that fails."""
    assert main.main(words) == 2
    return dict(json.loads(capsys.readouterr().out)["error"])


def test_without_a_server(prefect: None, home: Path, capsys: Capture) -> None:
    """No address and no `serve` in the home: it says how to have one. `--plan` is of a run here."""
    with temporary_settings({PREFECT_API_URL: None}):
        error = refused(["train", "--data", "a.jsonl", "--submit", "--json"], capsys)
    assert error["code"] == "DEP_PREFECT_UNREACHABLE" and "backprop serve" in error["hint"]
    assert main.main(["train", "--data", "a", "--submit", "--plan"]) == 1


def test_the_homes_own_server_is_known(tmp_path: Path) -> None:
    """While `serve` runs, its addresses and what its worker may read are known, and then no longer."""
    config = Settings(home=tmp_path / "home")
    addresses = Addresses(
        page="http://page", prefect="http://p", api="http://p/api", mlflow="http://m", pid=1, allowed=[str(tmp_path)]
    )
    assert running(config) is None
    with alone(config) as known:
        assert (running(config), known) == (None, {})
        serve.write(config, addresses)
        assert running(config) == addresses
        with pytest.raises(ServerActive, match="http://page"), alone(config):
            pass
    assert running(config) is None
    for _ in range(2):  # one that never came up forgets nothing
        with alone(config) as known:
            assert running(config) is None and Addresses.model_validate(known) == addresses
    submit.refuse_paths(RunSpec(datasets=[DatasetSpec(path=str(tmp_path / "a"))]), addresses)
    with pytest.raises(PathForbidden, match=r"/etc/passwd .* http://page"):
        submit.refuse_paths(RunSpec(datasets=[DatasetSpec(path="/etc/passwd")]), addresses)


def test_who_only_asks_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` starts although somebody who asks whether one runs holds the lock for a moment."""
    assert serve.ASKED > 0
    monkeypatch.setattr(serve, "ASKED", 100)  # a busy machine's moment
    tmp_path.joinpath("serve.json").write_text("{}")
    lock = FileLock(tmp_path / "serve.lock", thread_local=False)
    lock.acquire()
    asking = threading.Timer(0.2, lock.release)
    asking.start()
    with alone(Settings(home=tmp_path)):
        asking.join()
