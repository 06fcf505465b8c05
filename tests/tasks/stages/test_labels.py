"""Stages by names that people know their data by."""

from typing import Any

import pytest

from backprop_core.schema.refs import AdapterRef, Curated, DatasetRef, GGUFRef, RowsRef, Scores, Split, TrainResult
from backprop_core.schema.specs import DatasetSpec
from tasks.stages.labels import Labels, outcome

ADAPTER = AdapterRef(digest="a" * 64, kind="merged")


def rows(letter: str, count: int = 12) -> RowsRef:
    return RowsRef(digest=letter * 64, rows=count)


@pytest.fixture
def labels() -> Labels:
    """Of a line that holds out rows of `route`, after the rows of `billing` were read."""
    labels = Labels({"route": rows("e")})
    read = DatasetRef(name="b.jsonl", task="billing", train=rows("b", 120), heldout=rows("c"), read=132)
    labels.learn({}, Split(datasets=[read], heldout={"billing": rows("c")}, aside={}))
    return labels


@pytest.mark.parametrize(
    ("stage", "parameters", "name"),
    [
        ("curate", {"spec": DatasetSpec(path="data/billing.jsonl")}, "curate billing.jsonl"),
        ("split", {"batches": []}, "split"),
        ("train", {"rows": rows("b", 120), "start": None}, "train billing"),
        ("evaluate", {"heldout": rows("c"), "adapter": ADAPTER}, "evaluate billing"),
        ("evaluate", {"heldout": rows("e"), "adapter": None}, "evaluate route, base"),
        ("evaluate", {"heldout": rows("f"), "adapter": ADAPTER}, "evaluate"),
        ("search", {"heldout": [rows("c"), rows("e")]}, "search"),
        ("merge", {"merged": None, "tuned": ADAPTER}, "merge"),
        ("gate", {"metric": "exact_match"}, "gate"),
        ("convert_outside", {"adapter": ADAPTER, "outtype": "f16"}, "convert outside f16"),
        ("quantize", {"quantization": "q4_k_m"}, "quantize q4_k_m"),
        (
            "fidelity",
            {"gguf": GGUFRef(digest="9" * 64, quantization="q8_0", bytes=1), "adapter": None},
            "fidelity q8_0",
        ),
        ("package", {"package": "lora"}, "package lora"),
    ],
)
def test_a_stage_says_what_it_is_about(labels: Labels, stage: str, parameters: dict[str, Any], name: str) -> None:
    """Its task, or the file that it makes; nothing more where it is about several, or about rows of no known task."""
    assert labels.name(stage, parameters) == name


def test_rows_made_of_rows_belong_to_their_task(labels: Labels) -> None:
    """Rows that a stage makes of one task's rows are that task's; of several tasks' they are of none."""
    labels.learn({"rows": rows("b", 120)}, rows("d", 100))
    labels.learn({"heldouts": [rows("c"), rows("e")]}, rows("f"))
    assert labels.name("train", {"rows": rows("d", 100)}) == "train billing"
    assert labels.name("apart", {"heldout": rows("f")}) == "apart"


def test_a_result_is_said_in_a_few_words() -> None:
    """The figures that a person looks for; nothing where there is none."""
    scores = Scores(digest="a" * 64, rows=12, tokens=90, loss=0.5, token_accuracy=0.831, exact_match=0.5)
    assert outcome(scores) == "token accuracy 83.1 %, loss 0.5000, 12 rows"
    trained = TrainResult(adapter=ADAPTER, steps=48, tokens=9, train_loss=1.25, seconds=3.0)
    assert outcome(trained) == "48 steps, loss 1.2500"
    curated = Curated(rows=rows("b", 21), read=24, dropped={"duplicate": 2, "not_json": 1})
    assert outcome(curated) == "21 rows, 2 duplicate, 1 not json"
    kept = {"held_out": 12, "learned": 4}
    dataset = DatasetRef(name="b", task="b", train=rows("b", 9), heldout=rows("c"), read=24, not_trained=kept)
    split = Split(datasets=[dataset], heldout={"b": rows("c")}, aside={})
    assert outcome(split) == "9 rows to train, 12 held out, 4 learned before"
    two = Split(datasets=[dataset, dataset.model_copy(update={"task": "c"})], heldout={}, aside={})
    assert outcome(two).startswith("b: 9 rows to train") and "; c: 9 rows to train" in outcome(two)
