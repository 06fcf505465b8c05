"""What the record of a run says for people: how it ended first, and what it has cost."""

from backprop_core.schema.refs import DatasetSummary, GGUFRecord, Located, RunRecord, RunResult, StageRecord
from tasks.runs.prefect_artifacts import text
from tasks.runs.run_costs import costs
from tests.tasks.tracking.test_tracking import GATE, MATRIX

PLACE = Located(digest="1" * 64, path="/a")
DATASET = DatasetSummary(name="news", task="news", digest="1" * 64, train_rows=9, heldout_rows=1, dropped={})


def result(**more: object) -> RunResult:
    """A rejected retrain with a file that was asked something."""
    answers = [{"prompt": "which team?", "answer": "billing", "reference": "billing", "stopped": True}]
    fidelity = {"ids_equal": True, "top1": 1.0, "kl": 0.0, "answers": answers}
    file = GGUFRecord(quantization="f16", digest="2" * 64, path="/f", bytes=2**20, fidelity=fidelity)
    fields = {"run_id": "1" * 32, "flow": "retrain", "line": "support", "version": 3, "status": "rejected", "spec": {}}
    return RunResult.model_validate({**fields, "gate": GATE, "evaluation": MATRIX, "gguf": [file], **more})


def test_a_report_begins_with_the_verdict() -> None:
    """Then the gate's table, the matrix and the files; no row is quoted, so that MLflow has none to forget."""
    said = text(result())
    assert said.startswith("**rejected: news fell by 0.1**\n\n| task | rows |")
    assert said.index("| news | 9 |") < said.index("| token accuracy, % |") < said.index("| f16 |")
    assert "which team?" not in said
    assert text(result(status="finished")).startswith("**support v3: ")


def test_costs_leave_out_what_was_cached() -> None:
    """Seconds of computed stages, those of the device apart; of a cached training what it has saved."""
    stages = [
        StageRecord(stage=name, key="1" * 64, cached=cached, seconds=seconds, digest=None)
        for name, cached, seconds in (
            ("curate", False, 1),
            ("train", False, 10),
            ("train", True, 0.1),
            ("mine", False, 2),
        )
    ]
    runs = [
        RunRecord(
            **{"run_id": "2" * 32, "dataset": DATASET, "tuned": PLACE, "merged": PLACE, "steps": 1, "tokens": tokens},
            **{"seconds": seconds, "train_loss": 1, "cached": cached, "accepted": True},
        )
        for tokens, seconds, cached in ((100, 9, False), (50, 4, True))
    ]
    found = costs(result(stages=stages, runs=runs, spec={"training": {"device": "cuda"}}))
    assert found == {
        **{"cost.seconds": 13, "cost.gpu_seconds": 10, "cost.tokens": 100},
        **{"cache.stages": 1, "cache.saved_seconds": 4, "cache.saved_tokens": 50},
    }
