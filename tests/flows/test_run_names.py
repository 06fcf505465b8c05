"""What a person sees in the lists of Prefect's UI: names that say what a run is, and states that say how it ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.schemas.automations import EventTrigger
from prefect.flow_engine import run_flow

from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import CanarySpec, DatasetSpec, GateSpec, LoraSpec, TrainSpec
from flows import run_names
from flows.retrain import retrain
from flows.run_states import STATES
from flows.server.automations import NO_MORE, dead_runs
from tests.flows.test_retrain import batch

pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")
JOB = {
    "training": TrainSpec(steps=6, batch_size=8, learning_rate=1e-2, lora=LoraSpec(rank=8)),
    "gate": GateSpec(max_drop=1),
}
NEVER = CanarySpec(prompt="Say it.", expect="what no model says")
NOTHING = TrainSpec(steps=1, batch_size=8, learning_rate=1e-9, lora=LoraSpec(rank=8))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKPROPAGATE_HOME", str(tmp_path_factory.mktemp("home")))
        yield tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def ended(client: SyncPrefectClient, state: State[RunResult]) -> tuple[FlowRun, RunResult]:
    """The flow run as the server knows it, and what its caller gets."""
    assert state.state_details.flow_run_id
    return client.read_flow_run(state.state_details.flow_run_id), state.result()


def test_a_state_says_how_a_run_ended(
    client: SyncPrefectClient, base: Path, home: Path, page: list[str], task_names: set[str], tmp_path: Path
) -> None:
    """Accepted, unchanged and rejected are three states in every list, and the caller gets each result as before.

    A retrain is called by the version that it makes, or would have made; tasks by their stage and what it is about.
    """
    first, result = ended(client, retrain("seen", batch(tmp_path, 1), model=str(base), **JOB, return_state=True))
    assert (first.name, first.state_name, result.version) == ("seen v1", "Completed", 1)
    assert "line:seen" in first.tags
    assert first.state and result.gate and first.state.message == f"accepted: {result.gate.reason}"
    names = {
        "curate night-1.jsonl",
        "split seen",
        "train seen",
        "merge",
        "gate",
        "evaluate seen",
        "evaluate seen, base",
    }
    assert names <= task_names
    lines_of_the_log(page)
    same, result = ended(client, retrain("seen", batch(tmp_path, 1), **JOB, return_state=True))
    assert (same.name, same.state_name, result.status) == ("seen", "Unchanged", "unchanged")
    idle = JOB | {"training": NOTHING, "gate": GateSpec(canaries=[NEVER], canary_pass_rate=1)}
    worse, result = ended(client, retrain("seen", batch(tmp_path, 2), **idle, return_state=True))
    assert (worse.name, worse.state_name, result.status) == ("seen v2", "Rejected", "rejected")
    assert {run.state_type.value for run in (first, same, worse) if run.state_type} == {"COMPLETED"}


def lines_of_the_log(said: list[str]) -> None:
    """The page of a flow run has a line for each stage with what came of it, and the verdict last."""
    for stage in (
        "run_started",
        "curate night-1.jsonl: 150 rows",
        "split seen: 13",
        "train seen: 6 steps, loss ",
        "evaluate seen: token accuracy ",
        "gate: ",
    ):
        assert any(line.startswith(stage) for line in said), said
    assert said[-1].startswith("Finished in state Completed('accepted: ")


def test_a_name_that_a_person_gave_stays(client: SyncPrefectClient, home: Path) -> None:
    """Only a name that Prefect made up is replaced, also where the run fails; that is `Failed` as ever."""
    own = client.create_flow_run(retrain, name="before the release", parameters={"line": "a", "data": "/none.jsonl"})
    made = client.create_flow_run(retrain, parameters={"line": "a", "data": "/none.jsonl"})
    for run, name in ((own, "before the release"), (made, "a v1")):
        run_flow(retrain, flow_run=run, parameters=run.parameters, return_type="state")
        after = client.read_flow_run(run.id)
        assert (after.name, after.state_name) == (name, "Failed")
    assert all(map(run_names.GENERATED.fullmatch, ("keen-otter", "Awesome-Jaguar")))
    assert not any(map(run_names.GENERATED.fullmatch, ("by-a-person", "night 3", "support", "support-v3")))


def test_a_run_that_has_ended_is_not_taken_for_dead() -> None:
    """What marks silent runs as crashed knows every state that a run of ours can end in, by its name."""
    assert set(STATES.values()) <= set(NO_MORE)
    trigger = dead_runs("backprop", 90).trigger
    assert isinstance(trigger, EventTrigger)
    assert {f"prefect.flow-run.{name}" for name in STATES.values()} <= trigger.expect


@pytest.mark.parametrize(
    ("datasets", "name"),
    [
        (["/data/route.jsonl"], "route"),
        ([DatasetSpec(path="/data/route.jsonl", task="billing")], "billing"),
        ([DatasetSpec(path="https://host/a/night.csv.gz"), DatasetSpec(path="team/tickets")], "night, tickets"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_datasets_are_called_by_their_tasks(datasets: list[str | DatasetSpec], name: str) -> None:
    """A run is called after the tasks of its datasets, or their files where they name none."""
    assert run_names.tasks_of(datasets) == name


def test_a_name_has_nothing_of_an_address_query() -> None:
    """A signed address is called by its file, whole, and nothing that may be a secret comes into a list."""
    signed = "https://host/a/faq.v2.jsonl?token=top/secret.1"
    assert run_names.tasks_of([signed, "faq.v1.jsonl"]) == "faq.v2, faq.v1"
