"""A deployed flow run that is tried again, as the button in Prefect does it: it goes on with the run that it began."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry

from backprop_core.errors import BackpropError, Interrupted
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import BaseRef, Drift, RunResult
from backprop_core.schema.specs import DatasetSpec, LoraSpec, RunSpec, TrainSpec
from backprop_core.stages import Stage, Workplace
from flows.server.dead_runs import give_up, worker_name
from flows.train import train
from tasks.runs.flow_run import recorded
from tasks.runs.prepared_run import Prepared
from tests.faults.hold import Hold
from tests.faults.test_outage import steps_by_run

STEPS = 5
SPEC = TrainSpec(steps=STEPS, batch_size=8, checkpoint_seconds=0, device="cpu", lora=LoraSpec(rank=4))
START = Prepared(
    flow="train",
    spec=RunSpec(datasets=[DatasetSpec(path="a")]),
    base=BaseRef(name="base", digest="b" * 64),
    sources=[],
    watch=[],
)
pytestmark = pytest.mark.usefixtures("prefect", "home")


@pytest.fixture
def client(prefect: None):
    with get_client(sync_client=True) as client:
        yield client


def asked(client: SyncPrefectClient, **parameters: object) -> FlowRun:
    """A flow run of a deployment of `train`."""
    flow = client.create_flow(train)
    module = {"entrypoint": "flows.train:train", "pull_steps": [], "tags": [settings().namespace]}
    deployment = client.create_deployment(flow, "tries", **module)
    return client.create_flow_run_from_deployment(deployment, parameters=parameters)


def started(flow_run: UUID, **environment: str) -> "subprocess.Popen[bytes]":
    """Its process, in a group of its own, as a worker starts it."""
    address = get_current_settings().api.url
    assert address
    told = {"PREFECT_API_URL": address, "PREFECT__FLOW_RUN_ID": str(flow_run), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "prefect.engine"]
    return subprocess.Popen(command, env=os.environ | told, start_new_session=True, stderr=subprocess.DEVNULL)


def made(home: Path) -> dict[str, RunResult | None]:
    """The result of each run in the store, None of one that has none, by run_id."""
    runs = (home / "store" / "runs").iterdir()
    return {run.name: result(run / "result.json") for run in runs}


def result(path: Path) -> RunResult | None:
    return RunResult.model_validate_json(path.read_bytes()) if path.is_file() else None


def state(client: SyncPrefectClient, flow_run: UUID) -> State:
    found = client.read_flow_run(flow_run).state
    assert found
    return found


@pytest.mark.timeout(1800)
def test_a_killed_try_is_gone_on_with(client, home, base, data, tmp_path, monkeypatch):
    """Killed in a training: said to be so by the worker that comes next, and tried again it stays one run.

    Its `fresh` is about what others have done. The steps that it has done are not done again: MLflow has each once.
    """
    monkeypatch.setenv("BACKPROPAGATE_ALLOWED_PATHS", f"{base}:{Path(data[0]).parent}")
    flow_run = asked(client, data=data[0], model=str(base), training=SPEC.model_dump(mode="json"), fresh=True).id
    hold = Hold(tmp_path / "hold", training=1)
    with started(flow_run, **hold.environment) as process:
        hold.reached(lambda: process.poll() is None)
        give_up(settings(), worker_name(settings()))
        assert state(client, flow_run).is_running()
        os.killpg(process.pid, signal.SIGKILL)
    [(run_id, nothing)] = made(home).items()
    assert nothing is None
    give_up(settings(), worker_name(settings()))
    assert state(client, flow_run).is_crashed()
    client.set_flow_run_state(flow_run, AwaitingRetry(scheduled_time=None), force=True)
    assert started(flow_run).wait() == 0
    [(again, finished)] = made(home).items()
    assert again == run_id and finished and finished.status == "finished"
    assert [stage.cached for stage in finished.stages if stage.stage in ("curate", "train")] == [True, False]
    [lora_run] = finished.runs
    assert steps_by_run(home) == {lora_run.run_id: dict.fromkeys(range(1, STEPS + 1), 1)}


def test_a_fresh_run_that_goes_on_is_fresh(home):
    """What it has not done itself, it does again, whatever others did meanwhile; and what it has done, it takes."""
    done: list[str] = []

    def does(name: str) -> Stage[Drift]:
        def of(word: str, *, at: Workplace) -> Drift:
            done.append(name)
            return Drift(a=0, b=0, weight=0)

        of.__name__ = name
        return Stage(of, version=1, runs_in="parent", planned=False)

    before, after = does("pool"), does("first")

    @flow(persist_result=False)
    def job(run_id: str | None, fresh: bool, stops: bool) -> list[bool]:
        with recorded(lambda _: START, run_id=run_id, fresh=fresh) as (run, outcome):
            run.call(before, word="x")
            if stops:
                raise Interrupted(run.run_id, hint="")
            run.call(after, word="x")
        return [each.cached for each in outcome.made.stages]

    assert job(None, fresh=False, stops=False) == [False, False]
    with pytest.raises(Interrupted) as stopped:
        job(None, fresh=True, stops=True)
    assert job(None, fresh=False, stops=False) == [True, True]
    assert done == ["pool", "first", "pool"]
    for cached in (False, True):
        assert job(stopped.value.run_id, fresh=False, stops=False) == [True, cached]
    assert done == ["pool", "first", "pool", "first"]


def test_a_try_with_wrong_input_begins_anew(client, home, base, tmp_path, monkeypatch):
    """What failed for its rows is no run to go on with: its file may be another one by now."""
    monkeypatch.setenv("BACKPROPAGATE_ALLOWED_PATHS", f"{base}:{tmp_path}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"nothing": "known"}\n')
    flow_run = asked(client, data=str(rows), model=str(base), training=SPEC.model_dump(mode="json"))
    for _ in "ab":
        with pytest.raises(BackpropError, match="rows"):
            run_flow(train, flow_run=client.read_flow_run(flow_run.id), parameters=flow_run.parameters)
        client.set_flow_run_state(flow_run.id, AwaitingRetry(scheduled_time=None), force=True)
    assert [outcome.status for outcome in made(home).values() if outcome] == ["failed", "failed"]
