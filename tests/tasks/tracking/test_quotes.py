"""A server of MLflow gets blanked text in place of what it had, and nothing twice."""

import json
from pathlib import Path

import pytest

from backprop_core.data.row_quotes import Quotes
from backprop_core.runtime.settings import Settings
from tasks.tracking import sync
from tasks.tracking.connection import connect
from tasks.tracking.journal import Journal
from tasks.tracking.quotes import databases, quoting, replace
from tests.tasks.tracking.test_tracking import CHILD, OTHER, ROOT, Server, config, first_use, new_database, server

__all__ = ["config", "first_use", "new_database", "server"]  # fixtures
TEXT = 'call "Ann Smith" at noon'


def record(config: Settings, run_id: str, text: str, params: dict[str, str]) -> None:
    """A run whose answers quote a text."""
    with Journal(config.journal_path, run_id) as journal:
        journal.start(line="support", name="retrain", params=params, tags={"note": "none"})
        journal.metrics(1, {"loss": 0.5})
        journal.document("fidelity.json", {"f16": {"answers": [{"prompt": text}]}})
        journal.tags({"backprop.reason": f"asked: {text}"})
        journal.end("finished")


def test_a_server_has_the_text_no_more(config: Settings, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts and tags are replaced, metrics are as before; a parameter, which MLflow keeps, is named."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    server.wait()
    for run_id, text, params in ((ROOT, TEXT, {}), (CHILD, "other text", {}), (OTHER, TEXT, {"canary": TEXT})):
        record(config, run_id, text, params)
    assert (sync(config).error, databases(config)) == (None, [config.layout.mlflow_database])
    quotes = Quotes([TEXT])
    found = quoting(config, quotes)
    assert found == {ROOT: False, OTHER: True}
    for path in (config.journal_path / "sent").glob("*.jsonl"):
        quotes.blank(path)
    [left] = replace(config, found)
    assert left.startswith("MLflow keeps parameters: delete its run ")
    client = connect(config)
    [experiment] = client.search_experiments(filter_string="name = 'backprop.support'")
    runs = {run.data.tags["backprop.run_id"]: run for run in client.search_runs([experiment.experiment_id])}
    said = {
        run_id: json.loads(Path(client.download_artifacts(run.info.run_id, "fidelity.json")).read_text())
        for run_id, run in runs.items()
    }
    assert said[CHILD] == {"f16": {"answers": [{"prompt": "other text"}]}}
    assert "Ann Smith" not in json.dumps(said[ROOT]) and "[forgotten]" in json.dumps(said[ROOT])
    reasons = {run_id: run.data.tags["backprop.reason"] for run_id, run in runs.items()}
    assert "Ann Smith" not in reasons[ROOT] and reasons[CHILD] == "asked: other text"
    assert len(client.get_metric_history(runs[ROOT].info.run_id, "loss")) == 1
