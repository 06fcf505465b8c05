"""Flow runs whose process is gone are marked, whatever they did; those of others and the young are left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Failed, Paused, Pending, Running, State

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import BaseRef
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store, write_atomic
from flows.server import dead_runs
from flows.server.dead_runs import LABEL, give_up, prefix, worker_name
from tasks.runs import approval_questions
from tasks.runs.prepared_run import Prepared, save

pytestmark = pytest.mark.usefixtures("prefect", "home")
RUN = "c" * 32


@flow(name="of-dead-runs")
def nothing() -> None:
    """Has a name."""


@pytest.fixture
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def begin(client: SyncPrefectClient, tmp_path: Path):
    """Makes a flow run of a deployment of this test, in a state, taken by a worker; each deployment runs one."""
    made = iter(range(100))
    pool = f"pool-{tmp_path.name}"
    client.create_work_pool(WorkPoolCreate(name=pool, type="process"))

    def begin(state: State[Any], worker: str | None) -> UUID:
        deployment = client.create_deployment(
            flow_id=client.create_flow(nothing),
            name=f"{tmp_path.name}-{next(made)}",
            tags=["backprop"],
            concurrency_limit=1,
            work_pool_name=pool,
        )
        run = client.create_flow_run_from_deployment(deployment, tags=["backprop"])
        assert client.set_flow_run_state(run.id, Pending()).state.is_pending()  # takes the slot
        client.set_flow_run_state(run.id, state, force=True)
        if worker:
            client.request("PATCH", f"/flow_runs/{run.id}/labels", json={LABEL: worker})
        return run.id

    return begin


def state(client: SyncPrefectClient, run: UUID) -> str:
    found = client.read_flow_run(run).state
    assert found
    return found.type.value


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Pending(name="Submitting"), "CRASHED"),
        (Pending(name="InfrastructurePending"), "CRASHED"),
        (Running(), "CRASHED"),
        (Cancelling(), "CANCELLED"),
    ],
)
def test_a_run_of_a_dead_worker_is_marked(client, begin, home, before, after):
    """What an earlier worker of this home had taken is over, and its deployment's slot is free for the next run."""
    config = settings()
    run = begin(before, worker_name(config))
    give_up(config, worker_name(config), young=0)
    assert state(client, run) == after
    deployment = client.read_flow_run(run).deployment_id
    other = client.create_flow_run_from_deployment(deployment)
    assert client.set_flow_run_state(other.id, Pending()).state.is_pending()


def test_every_run_of_a_dead_worker_is_marked(client, begin, home, monkeypatch):
    """Prefect answers with a page of runs at a time; those after it are marked in the same round."""
    monkeypatch.setattr(dead_runs, "PAGE", 1)
    runs = [begin(Running(), worker_name(settings())) for _ in range(2)]
    give_up(settings(), worker_name(settings()), young=0)
    assert {state(client, run) for run in runs} == {"CRASHED"}


def test_what_lives_is_left_alone(client, begin, home):
    """Runs of the worker that lives, of other homes' workers, and those that were taken a moment ago."""
    config = settings()
    own = worker_name(config)
    others = [begin(Running(), own), begin(Running(), f"{prefix(config)[:-8]}abcdef-1"), begin(Running(), None)]
    pending = [begin(Pending(), own), begin(Pending(), "ProcessWorker 1")]
    give_up(config, own, young=0)
    young = begin(Pending(), worker_name(config))
    give_up(config, own)
    assert {state(client, run) for run in others} == {"RUNNING"}
    assert {state(client, run) for run in [*pending, young]} == {"PENDING"}


def test_a_run_that_nobody_took_is_marked(client, begin, home, monkeypatch):
    """Killed between taking the slot and saying so, a worker leaves no name; in our pool such a run is dead."""
    run = begin(Pending(), None)
    monkeypatch.setenv("BACKPROPAGATE_POOL", str(client.read_flow_run(run).work_pool_name))
    give_up(settings(), worker_name(settings()), young=0)
    assert state(client, run) == "CRASHED"


@pytest.mark.parametrize(
    ("ended", "asked", "after"),
    [
        (Crashed(), Paused(), "SCHEDULED"),
        (Failed(), Paused(), "SCHEDULED"),
        (Failed(), Running(), "SCHEDULED"),
        (Failed(), Completed(), "FAILED"),
        (Completed(), Paused(), "COMPLETED"),
    ],
)
def test_a_run_that_waits_for_approval_goes_on(client, begin, home, ended, asked, after):
    """It is tried again if its question is open or just answered; never what has ended well or was answered before."""
    config = settings()
    store = Store(config.store_path)
    spec, base = RunSpec(datasets=[DatasetSpec(path="a")]), BaseRef(name="base", digest="b" * 64)
    save(Prepared(flow="retrain", spec=spec, base=base, sources=[], watch=[]), RUN, store)
    run = begin(ended, worker_name(config))
    write_atomic(store.root / "flow-runs" / str(run), RUN)
    question = client.create_flow_run(nothing, state=asked)
    approval_questions.note(RUN, str(question.id), store)
    give_up(config, worker_name(config), young=0)
    assert state(client, run) == after
    if after == "SCHEDULED":
        assert client.read_flow_run(run).state.name == AwaitingRetry().name
