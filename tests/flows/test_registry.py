"""A flow is declared once: its row in the table, its function, its verb. Everything else is derived from these."""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import Flow

from backprop_core.errors import RunUnknown
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS, FlowInfo, Verb, flow_info
from backprop_core.schema.refs import BaseRef, RunResult
from backprop_core.schema.specs import DatasetSpec, ModelSpec, PublishSpec, RunSpec, TrainSpec
from flows.cli.main import build
from flows.cli.verb_tables import NO_FLOWS, verbs
from flows.declared import BODIES, declared
from flows.parameters import parameters, signature, to_resume
from flows.pipeline import pipeline
from flows.registry import entrypoint, load, planned_body
from flows.server.deploy import deployments
from flows.server.deployment_names import moved, path_of
from tasks.runs.prepared_run import Prepared

ROOT = Path(__file__).parents[2]
VERB = Verb("count", "running", "Count rows.", "backprop count --data a.jsonl", after="train")
NEW = FlowInfo("count-rows", "count-the-rows", VERB, trains=True)
SPEC = RunSpec(
    line="support",
    model=ModelSpec(name="m"),
    datasets=[DatasetSpec(path="a.jsonl"), DatasetSpec(path="b.jsonl")],
    training=TrainSpec(steps=3),
    publish=PublishSpec(repo="me/it"),
)
BASE = BaseRef(name="m", revision=None, digest="0" * 64)
every_flow = pytest.mark.parametrize("name", FLOWS)


@pytest.fixture
def count_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A flow that is declared the smallest way: a row in the table, and a function in a module of its name."""
    monkeypatch.setitem(FLOWS, NEW.name, NEW)
    module: Any = ModuleType("flows.count_rows")

    @declared("count-rows", title=lambda given: f"count {given['line']}", body=pipeline)
    def count_rows(data: DatasetSpec, line: str = "default", run_id: str | None = None) -> RunResult:
        """Count the rows of a dataset.

        Args:
            data: The rows.
            line: Name under which the run is recorded.
            run_id: Of an interrupted run.
        """
        raise NotImplementedError

    module.count_rows = count_rows
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield
    del BODIES[NEW.name]


def test_a_new_flow_is_known_everywhere(count_rows: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Deploy, the address of its deployment, --help, plan, parameters and resume take it from its declaration."""
    made = {one.path: one for one in deployments(Settings(namespace="newflow"), {}, "pool")}
    fields = made["count-rows/count-the-rows"].fields
    assert (fields["entrypoint"], fields["tags"]) == ("flows.count_rows:count_rows", ["count-rows", "newflow"])
    assert fields["parameter_openapi_schema"]["properties"]["data"]["description"] == "The rows."
    assert moved("/api/deployments/name/count-rows/default") == f"/api/deployments/name/{path_of('count-rows')}"
    assert list(verbs()).index("count") == list(verbs()).index("train") + 1
    build()(["--help"], result_action="return_value")
    assert "Count rows." in capsys.readouterr().out
    assert planned_body("count-rows") is pipeline
    assert parameters("count-rows", SPEC, fresh=False) == {"data": SPEC.datasets[0], "line": "support", "fresh": False}
    assert again("count-rows") == {"data": SPEC.datasets[0], "run_id": "abc"}


def again(flow: str) -> dict[str, Any]:
    """What the flow of an interrupted run `abc` is called with."""
    return to_resume(flow, "abc", Prepared(flow=flow, spec=SPEC, base=BASE, sources=[], watch=[]))


def test_nothing_derived_has_more_or_less_than_the_table() -> None:
    """One deployment, one address and one verb for each flow of the table, and no other."""
    made = {one.flow: one.path for one in deployments(Settings(), {}, "pool")}
    assert made == {name: f"{name}/{flow.deployment}" for name, flow in FLOWS.items()}
    of_flows = [flow.verb.name for flow in FLOWS.values() if flow.verb]
    assert sorted(verbs()) == sorted([*NO_FLOWS, *of_flows]) and len(set(verbs())) == len(verbs())
    assert BODIES.keys() == {name for name, flow in FLOWS.items() if flow.trains}


@every_flow
def test_a_flow_is_complete(name: str) -> None:
    """Its entrypoint is a Prefect flow, its verb a function, and it can be resumed if the table says so."""
    flow, info = load(name), FLOWS[name]
    assert isinstance(flow, Flow) and flow.name == name and flow.description and info.deployment
    assert ("run_id" in signature(name)) is info.resumable
    assert flow.should_validate_parameters is not info.per_line  # `as_deployed` validates them itself
    if info.verb:
        module = importlib.import_module(f"flows.cli.{info.verb.module}")
        assert callable(getattr(module, info.verb.name.replace("-", "_")))
    if info.resumable:
        assert again(name)["run_id"] == "abc"


def test_a_resumed_flow_is_given_what_it_needs() -> None:
    """The parameters that a flow cannot do without come from the run's record; a reference is the run itself."""
    one, both = SPEC.datasets[0], SPEC.datasets
    assert {name: again(name) for name, flow in FLOWS.items() if flow.resumable} == {
        "train": {"data": one, "run_id": "abc"},
        "multi-run": {"datasets": both, "run_id": "abc"},
        "sweep": {"data": one, "run_id": "abc"},
        "retrain": {"line": "support", "data": one, "run_id": "abc"},
        "rebase": {"line": "support", "model": SPEC.model, "run_id": "abc"},
        "promote": {"ref": "abc", "line": "support", "run_id": "abc"},
        "evaluate": {"ref": "abc", "run_id": "abc"},
        "bench": {"run_id": "abc"},
        "export": {"ref": "abc", "run_id": "abc"},
        "publish": {"ref": "abc", "repo": "me/it", "run_id": "abc"},
        "release": {"line": "support", "run_id": "abc"},
        "rollback": {"line": "support", "run_id": "abc"},
    }


def test_a_flow_of_another_version() -> None:
    """A stored run may name a flow that is not in the table: it is of no kind, and calling it says so."""
    other = flow_info("none-of-ours")
    assert not (other.trains or other.of_line or other.keeps_result or other.only_scores) and other.rows == "own"
    with pytest.raises(RunUnknown, match="none-of-ours"):
        entrypoint("none-of-ours")


def lists_of_flows(source: str) -> list[int]:
    """Lines of a module where a literal holds nothing but names of flows, or a function compares with three of them."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=members) | ast.Tuple(elts=members) | ast.List(elts=members) | ast.Set(elts=members):
                texts = {one.value for one in members if isinstance(one, ast.Constant) and isinstance(one.value, str)}
                is_of_spec = texts <= RunSpec.model_fields.keys()  # `export` and `publish` are parts of a spec, too
                if len(texts) > 1 and texts <= FLOWS.keys() and not is_of_spec:
                    found.append(node.lineno)
            case ast.FunctionDef():
                compared = {
                    side.value
                    for one in ast.walk(node)
                    if isinstance(one, ast.Compare) and "flow" in ast.unparse(one.left)
                    for side in one.comparators
                    if isinstance(side, ast.Constant) and side.value in FLOWS
                }
                found += [node.lineno] if len(compared) > 2 else []
    return found


@pytest.mark.parametrize("package", ["backprop_core", "tasks", "flows"])
def test_there_is_no_second_list(package: str) -> None:
    """No module but the table holds a list of flow names or chooses between flows by name."""
    modules = [path for path in (ROOT / package).rglob("*.py") if path != ROOT / "backprop_core/schema/flows.py"]
    found = {str(path): lists_of_flows(path.read_text(encoding="utf-8")) for path in modules}
    assert found and {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        'TRAINING = ("train", "multi-run", "retrain")',
        'OF_A_LINE = {"retrain", "drift"}',
        'NAMES = {"train": "train-once", "export": "export-a-run"}',
        'def by(flow):\n    return flow == "train" or flow == "export" or flow != "drift"',
    ],
)
def test_a_second_list_would_be_found(source: str) -> None:
    """The check above can fail: each of these is such a list."""
    assert lists_of_flows(source) == [1]
