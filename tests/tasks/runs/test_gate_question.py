"""A gate that cannot answer its question, or would not use a field, is refused before anything is computed."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from backprop_core.errors import ConfigInvalid
from backprop_core.models import base as bases
from backprop_core.schema.gate_report import Act
from backprop_core.schema.specs import (
    DatasetSpec,
    EvaluationSpec,
    GateSpec,
    LoraSpec,
    MergeSpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
)
from backprop_core.store.artifacts import Store
from tasks.runs import rebase, resolve
from tasks.runs.flow_run import resumed
from tasks.runs.prepared_run import Prepared, save
from tasks.runs.resolve_earlier import promoted
from tests.backprop_core import nano, tiny_models
from tests.tasks.runs.test_resolve_line import begun

NOT_WORSE = GateSpec(question="not_worse")
REFUSED = "not_worse needs a metric in which a row is right or wrong, or scores between 0 and 1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    file = tmp_path / "night.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(40)))
    return RunSpec(
        line="support",
        model=ModelSpec(name=str(nano.build(tmp_path / "base"))),
        datasets=[DatasetSpec(path=str(file))],
        training=TrainSpec(steps=2, device="cpu", lora=LoraSpec(rank=4)),
        gate=NOT_WORSE,
    )


def by(spec: RunSpec, metric: str) -> RunSpec:
    return spec.model_copy(update={"evaluation": EvaluationSpec.model_validate({"metric": metric})})


def test_a_retrain_by_loss_is_refused(spec: RunSpec, store: Store) -> None:
    """A rare large loss would go unseen; a metric from 0 to 1, and the question `better`, are no reason to refuse."""
    with pytest.raises(ConfigInvalid, match=REFUSED) as caught:
        resolve.prepare("retrain", by(spec, "loss"), store)
    assert "evaluation.metric=exact_match" in caught.value.hint
    for metric in ("token_accuracy", "exact_match", "token_f1"):
        assert resolve.prepare("retrain", by(spec, metric), store).spec.gate == NOT_WORSE
    assert resolve.prepare("retrain", by(spec, "loss").model_copy(update={"gate": GateSpec()}), store)


@pytest.mark.parametrize(("metric", "refused"), [("loss", True), ("exact_match", False)])
def test_an_older_run_is_resumed_by_the_same_rule(spec: RunSpec, store: Store, metric: str, refused: bool) -> None:
    """A run that began before the rule is not resumed to a gate that cannot answer its question."""
    run, base = "2" * 32, bases.resolve(spec.model, store)
    save(Prepared(flow="retrain", spec=by(spec, metric), base=base, sources=[], watch=[]), run, store)
    if refused:
        with pytest.raises(ConfigInvalid, match=REFUSED):
            resumed(run, store)
    else:
        assert resumed(run, store).spec.gate == NOT_WORSE


CANARY = {"prompt": "2+2?", "expect": "4"}


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"canary_pass_rate": 0.9}, "gate.canary_pass_rate has no effect without gate.canaries"),
        ({"margin": 0.05}, "gate.margin has no effect with gate.question=better"),
        ({"canary_pass_rate": 0.9, "canaries": [CANARY]}, None),
        ({"margin": 0.05, "question": "not_worse"}, None),
        (GateSpec().model_dump(), None),
    ],
)
def test_a_field_without_effect_is_refused(
    spec: RunSpec, store: Store, fields: dict[str, Any], refused: str | None
) -> None:
    """A rate without canaries, and a margin that `better` ignores; a recorded spec, which has all fields, is not."""
    asked = spec.model_copy(update={"gate": GateSpec.model_validate(fields)})
    if refused:
        with pytest.raises(ConfigInvalid, match=refused):
            resolve.prepare("retrain", asked, store)
    else:
        assert resolve.prepare("retrain", asked, store).spec.gate == asked.gate


@pytest.mark.parametrize(("metric", "refused"), [("loss", True), ("exact_match", False)])
def test_a_promotion_by_loss_is_refused(spec: RunSpec, store: Store, metric: str, refused: bool) -> None:
    """The run that becomes a line brings its gate and its metric along."""
    made = Prepared(flow="train", spec=by(spec, metric), base=bases.resolve(spec.model, store), sources=[], watch=[])
    save(made, "1" * 32, store)
    act = Act(by="ada", at=datetime.now(UTC))
    if refused:
        with pytest.raises(ConfigInvalid, match=REFUSED):
            promoted("1" * 32, "support", act, store)
    else:
        assert promoted("1" * 32, "support", act, store).spec.gate == NOT_WORSE


@pytest.mark.parametrize(
    ("metric", "same_tokens", "refused"),
    [
        ("token_accuracy", False, "bits per byte"),
        ("loss", False, "bits per byte"),
        ("loss", True, "loss"),
        ("token_accuracy", True, None),
        ("exact_match", False, None),
    ],
)
def test_a_rebase_by_bytes_is_refused(
    spec: RunSpec, store: Store, tmp_path: Path, metric: str, same_tokens: bool, refused: str | None
) -> None:
    """Two bases with different tokens are compared in bits per byte, which have no worst value."""
    version, other = (
        begun(spec, store, merge=MergeSpec()),
        nano.build(tmp_path / "other", seed=1, vocab_size=300 if same_tokens else 400),
    )
    if not same_tokens:
        tiny_models.use_tokenizer(other, pre_tokenizers.ByteLevel(add_prefix_space=False))
    rows = store.local(nano.commit_rows(store, nano.chats(40)))
    shutil.copytree(rows, store.layout.artifact(version.datasets[0].train.digest))
    moved = by(spec, metric).model_copy(update={"model": ModelSpec(name=str(other))})
    assert bases.same_tokens(version.base, bases.resolve(moved.model, store)) == same_tokens
    if refused:
        with pytest.raises(ConfigInvalid, match=f"{REFUSED}; {refused} has no worst value"):
            rebase.prepare(moved, store)
    else:
        assert rebase.prepare(moved, store).spec.gate == NOT_WORSE
