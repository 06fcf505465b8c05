"""A task of lm-evaluation-harness whose data are on the Hub: a worker, which is offline else, fetches them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from backprop_core.errors import HarnessFailed
from backprop_core.evaluation import lm_eval_tasks
from backprop_core.evaluation.stages import harness as harness_stage
from backprop_core.models import base as bases
from backprop_core.schema.specs import HarnessSpec, ModelSpec
from backprop_core.store.artifacts import Store
from backprop_core.worker.client import Worker, child_environment
from tests.backprop_core import nano
from tests.wire.hub_server import TOKEN, HubServer, Repo

TASK = {
    "task": "questions",
    "dataset_path": "team/questions",
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{asked}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with one dataset, and the environment of a user who has a token for it."""
    with HubServer().running() as server:
        rows = "".join(json.dumps({"asked": f"{n}?", "answer": "yes"}) + "\n" for n in range(4))
        server.datasets["team/questions"] = repo = Repo(private=False)
        repo.add({"test.jsonl": rows.encode()})
        for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.parametrize("offline", ["", "1"])
def test_data_of_the_hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: str) -> None:
    """Fetched where the user's environment allows it; else a coded error, and nobody is asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "questions.yaml").write_text(yaml.safe_dump(TASK))
    store = Store(tmp_path / "store")
    base = bases.resolve(ModelSpec(name=str(nano.build(tmp_path / "base"))), store)
    asked = {"base": base, "adapter": None, "precision": "fp32", "device": "cpu"}
    spec, own = HarnessSpec(tasks=["questions"]), lm_eval_tasks.find(tmp_path / "tasks")
    worker = Worker(store, slots=[tmp_path / "cpu.lock"])
    assert child_environment()["HF_UPDATE_DOWNLOAD_COUNTS"] == "0"  # nobody is told what was asked for
    try:
        if offline:
            with pytest.raises(HarnessFailed, match="Offline"):
                worker.call(harness_stage, key="0" * 64, on_event=print, spec=spec, own=own, **asked)
            assert server.requests == []
        else:
            made = worker.call(harness_stage, key="0" * 64, on_event=print, spec=spec, own=own, **asked)
            assert made.scores["questions"].keys() == {"acc"}
            assert server.count("GET /datasets/team/questions/resolve/") >= 1
    finally:
        worker.close()
        store.close()
