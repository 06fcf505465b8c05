"""The model card: filled from the record, for people and for the Hub, with nothing of the machine that made it."""

import json

import pytest
import yaml

from backprop_core.publishing.model_card import card, record
from backprop_core.schema.refs import BaseRecord, DatasetSummary, Evaluation, GGUFRecord, Located, RunResult
from backprop_core.schema.specs import DatasetSpec, ModelSpec, RunSpec

HOME = "/home/somebody/secret"
FIDELITY = {"positions": 100, "ids_equal": True, "top1": 0.987, "kl": 0.00123}
ANSWER = {"prompt": "a customer's secret", "answer": "Yes", "reference": "No", "stopped": True}
MEASURED = {**FIDELITY, "answers": [ANSWER]}


def result(revision: str | None) -> RunResult:
    name = "org/base" if revision else f"{HOME}/base"
    spec = RunSpec(line="support", model=ModelSpec(name=name), datasets=[DatasetSpec(path=f"{HOME}/a.jsonl")])
    return RunResult(
        run_id="ab" * 16,
        line="support",
        version=3,
        status="finished",
        spec=spec.model_dump(mode="json"),
        base=BaseRecord(name=name, revision=revision, digest="c" * 64),
        evaluation=Evaluation(
            tasks=["a", "b"],
            watch=[],
            metric="token_accuracy",
            matrix=[[0.5, None], [0.45, 0.75]],
            loss=[[1.0, None], [1.1, 0.9]],
            exact_match=[[0.0, None], [0.0, 0.1]],
            base=[0.1, 0.2],
            base_exact_match=[0.0, 0.0],
            average=0.6,
            backward_transfer=-0.05,
            forgetting=[0.05, 0.0],
        ),
        merged=Located(digest="d" * 64, path=f"{HOME}/store/d"),
        gguf=[GGUFRecord(quantization="q8_0", digest="e" * 64, path=f"{HOME}/m.gguf", bytes=2**20, fidelity=MEASURED)],
    )


DATASETS = [
    DatasetSummary(name=name, task="a", digest="f" * 64, train_rows=90, heldout_rows=10, dropped={"duplicate": 2})
    for name in ("monday", "tues|day<script>")
]


def test_the_card_says_the_day_that_the_template_writes() -> None:
    """Where a chat template asks for the day, the card has the one that training saw; elsewhere it speaks of none."""
    made = result("1" * 40)
    dated = made.model_copy(update={"base": made.base and made.base.model_copy(update={"day": "2024-07-26"})})
    cards = [card(each, DATASETS, repo="team/support", files=["support-q8_0.gguf"]) for each in (made, dated)]
    assert ["2024-07-26" in text for text in cards] == [False, True]


@pytest.mark.parametrize("revision", ["1" * 40, None], ids=["from the Hub", "local"])
def test_card(revision: str | None) -> None:
    """Base, data, recipe, matrix, fidelity, use and reproduction stand there; no path, and no markup of the data's."""
    made = card(result(revision), DATASETS, repo="team/support", files=["support-q8_0.gguf"])
    front = yaml.safe_load(made.split("---")[1])
    assert front.get("base_model") == ("org/base" if revision else None) and front["library_name"] == "peft"
    for text in [
        "support, version 3",
        "c" * 64,
        "| 1 | monday | a | 90 | 10 | 2 duplicate | ffffffffffff |",
        "| training.learning_rate | 0.0002 |",
        "| the base | 10.0 | 20.0 |",
        "| run 1 | 50.0 |  |",
        "| run 2 | 45.0 | 75.0 |",
        "Average 60.0 % (token_accuracy), backward transfer -5.0 points.",
        "| support-q8_0.gguf | 1.0 | yes | 98.7 | 0.0012 | 0 of 1 | eeeeeeeeeeee |",
        "backprop replay " + "ab" * 16,
        "d" * 64,
        "AutoPeftModelForCausalLM" if revision else "PeftModel.from_pretrained(base",
    ]:
        assert text in made, text
    assert HOME not in made and "<script>" not in made
    assert HOME not in record(result(revision), DATASETS)
    assert ANSWER["prompt"] not in made + record(result(revision), DATASETS)  # it may be a held-out row's


def test_a_loss_on_the_card_is_no_share() -> None:
    """It is written as people know it, and so is what it lost since."""
    made = result("1" * 40)
    assert made.evaluation
    by_loss = made.evaluation.model_copy(update={"metric": "loss", "average": -0.5, "backward_transfer": -0.125})
    text = card(made.model_copy(update={"evaluation": by_loss}), DATASETS, repo="team/support", files=["a.gguf"])
    assert "Average 0.500 (loss), backward transfer -0.125." in text


def test_record() -> None:
    """The same for machines; the same content is the same text."""
    made = record(result("1" * 40), DATASETS)
    read = json.loads(made)
    assert made == record(result("1" * 40), DATASETS) and read["version"] == 3
    assert read["gguf"][0]["fidelity"] == FIDELITY and read["merged"] == "d" * 64


def test_a_run_without_scores_has_a_card() -> None:
    """What was not measured is left out, not made up."""
    bare = result("1" * 40).model_copy(update={"evaluation": None, "gguf": []})
    made = card(bare, DATASETS, repo="team/support", files=[])
    assert "What it remembers" not in made and "## Files" not in made
