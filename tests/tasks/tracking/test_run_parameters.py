"""Which fields of a spec are parameters of its run in MLflow."""

from backprop_core.schema.refs import DatasetSummary
from backprop_core.schema.specs import DatasetSpec, LoraSpec, RunSpec, TrainSpec
from tasks.tracking.run_parameters import COMPARED, dataset_parameters, defaults, run_parameters


def test_what_nobody_has_set_is_no_parameter() -> None:
    """What differs from its default, what was chosen, and what runs are compared by; nothing that is empty."""
    training = TrainSpec(steps=6, weight_decay=0.5, lora=LoraSpec(rank=8))
    spec = RunSpec(line="support", datasets=[DatasetSpec(path="a.jsonl")], training=training)
    found = run_parameters(spec, ["training.token_budget"])
    assert found["training.weight_decay"] == "0.5" and found["training.lora.rank"] == "8"
    assert found["training.token_budget"] == "4096" and found["datasets.0.path"] == "a.jsonl"
    assert set(found) <= {*COMPARED, "training.weight_decay", "training.token_budget", "datasets.0.path"}
    assert "None" not in found.values()


def test_what_runs_are_compared_by_exists() -> None:
    """Every name is a field of the spec."""
    assert set(COMPARED) <= set(defaults(1))


def test_a_lora_run_has_its_dataset() -> None:
    """How the run trains, and which dataset this part of it trains on."""
    dataset = DatasetSummary(name="news", task="n", digest="1" * 64, train_rows=9, heldout_rows=1, dropped={})
    found = dataset_parameters(dataset, {"training.steps": "6", "gate.max_drop": "0"})
    assert found["training.steps"] == "6" and "gate.max_drop" not in found
    assert found["dataset.name"] == "news" and found["dataset.train_rows"] == "9"
