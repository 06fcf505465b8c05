"""What runs are called in MLflow's lists."""

from datetime import date

import pytest

from backprop_core.schema.refs import BaseRef, RunResult, SourceRef
from backprop_core.schema.specs import DatasetSpec, RunSpec
from tasks.runs.prepared_run import Prepared
from tasks.runs.record_names import begun_name, ended_name, listed, lora_run_name
from tasks.runs.sources import Source
from tests.backprop_core.lines.test_versions import version

DAY = date(2026, 11, 30)
FILE = SourceRef(digest="1" * 64, path="/data/news.jsonl")


def prepared(flow: str, **more: object) -> Prepared:
    """A run of a flow on two datasets of one task."""
    fields = {
        "flow": flow,
        "spec": RunSpec(line="support", datasets=[DatasetSpec(path="a"), DatasetSpec(path="b")]),
        "base": BaseRef(name="acme", digest="2" * 64),
        "sources": [Source(name=name, task="news", data=FILE, heldout=None) for name in ("one", "two")],
        "watch": [],
    }
    return Prepared.model_validate(fields | more)


@pytest.mark.parametrize(
    ("flow", "more", "name"),
    [
        ("train", {}, "train news"),
        ("retrain", {}, "support candidate 2026-11-30"),
        ("export", {"of": "abcdef01" * 4}, "export support abcdef01"),
        ("rollback", {"live": {"number": 2, "version": version()}}, "roll back support to v2"),
        ("drift", {"sources": []}, "drift support"),
    ],
)
def test_a_run_is_called_by_what_it_does(flow: str, more: dict[str, object], name: str) -> None:
    """By its line if it makes a version, by its data if it makes none, by the run or version that it is about."""
    assert begun_name(prepared(flow, **more), DAY) == name


@pytest.mark.parametrize(
    ("flow", "status", "name"),
    [
        ("retrain", "finished", "support v3"),
        ("promote", "finished", "support v3"),
        ("retrain", "rejected", "support rejected 2026-11-30"),
        ("retrain", "interrupted", "support interrupted 2026-11-30"),
        ("train", "finished", None),
    ],
)
def test_a_run_of_a_line_is_called_by_what_came_of_it(flow: str, status: str, name: str | None) -> None:
    """A version by its number, a candidate that is none by how it ended."""
    result = RunResult.model_validate(
        {"run_id": "1" * 32, "flow": flow, "line": "support", "version": 3, "status": status, "spec": {}}
    )
    assert ended_name(result, DAY) == name


def test_lora_runs_are_counted_if_there_are_several() -> None:
    """Each by its dataset; a long list of names is cut and counted."""
    assert lora_run_name("news", 0, 1) == "train news" and lora_run_name("chat", 1, 3) == "train chat (2 of 3)"
    assert listed(["a", "b", "a", "c", "d", "e"]) == "a, b, c and 2 more"
