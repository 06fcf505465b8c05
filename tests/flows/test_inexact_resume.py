"""Going on where the bits cannot be the same: allowed by a flag, and no reason to train anything again."""

from pathlib import Path

import pytest

from backprop_core.errors import CheckpointInvalid, ConfigInvalid
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import LoraSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_parts
from backprop_core.training import checkpoint
from backprop_core.training.checkpoint import Checkpoint
from flows.cli import run_here
from flows.cli.flags import Flags
from flows.train import train
from tasks.runs import prepared_run, resolve
from tasks.runs.resolve_defaults import decide
from tests.backprop_core import nano


@pytest.fixture
def prepared(tmp_path: Path) -> prepared_run.Prepared:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    spec = RunSpec.model_validate(
        {
            "model": {"name": str(nano.build(tmp_path / "base"))},
            "datasets": [{"path": str(tmp_path / "a.jsonl")}],
            "training": {"device": "cpu"},
        }
    )
    return resolve.prepare("train", spec, Store(tmp_path / "store"))


def test_the_flag_sets_the_field() -> None:
    """--inexact-resume is training.inexact_resume; without it nothing is allowed."""
    assert Flags(data=["a.jsonl"], inexact_resume=True).spec().training.inexact_resume
    assert not Flags(data=["a.jsonl"]).spec().training.inexact_resume


def test_a_resumed_run_that_may_is_the_same_run(prepared: prepared_run.Prepared) -> None:
    """Only the permission changes: the run's digest and the key of its training stay, so its checkpoint is found."""
    allowed = prepared_run.allow_inexact(prepared)
    assert allowed.spec.training.inexact_resume
    assert allowed.digest() == prepared.digest()
    one, other = (stage_parts("train", {"spec": run.spec.training}) for run in (prepared, allowed))
    assert one == other


def test_quantization_is_a_precision(prepared: prepared_run.Prepared, tmp_path: Path) -> None:
    """model.quantization=nf4 trains in nf4, and contradicts another precision."""

    def precision(spec: RunSpec) -> str:
        sources = [source.data for source in prepared.sources]
        resolved, _ = decide(spec, prepared.base, sources, Store(tmp_path / "store"), later=False)
        return resolved.training.precision

    spec = prepared.spec.model_copy(update={"model": prepared.spec.model.model_copy(update={"quantization": "nf4"})})
    with pytest.raises(ConfigInvalid, match="precision=fp32"):  # that is what it had been resolved to
        precision(spec)
    for asked in ("auto", "nf4"):
        training = spec.training.model_copy(update={"precision": asked})
        assert precision(spec.model_copy(update={"training": training})) == "nf4"


@pytest.mark.usefixtures("warm_worker", "prefect", "home")
def test_fresh_removes_the_checkpoints_of_the_key(base: Path, data: list[str]) -> None:
    """A checkpoint of another machine stops a run; --fresh, as the hint says, begins again and leaves none behind."""
    training = TrainSpec(steps=2, batch_size=8, lora=LoraSpec(rank=4))
    spec = RunSpec.model_validate({"model": {"name": str(base)}, "datasets": [{"path": data[0]}], "training": training})
    train(data[0], model=str(base), training=training.model_copy(update={"steps": 1}))  # curates: the key is known now
    [stage] = [stage for stage in run_here.plan("train", spec, fresh=False).stages if stage.stage == "train"]
    folder = Store(settings().store_path).layout.checkpoints(stage.key)
    checkpoint.save(Checkpoint(1, {"fingerprint": {"torch": "0.1"}}, {}), folder, keep=2)
    with pytest.raises(CheckpointInvalid, match=r"torch was 0\.1") as caught:
        train(data[0], model=str(base), training=training)
    assert "--fresh" in caught.value.hint and folder.is_dir()
    assert train(data[0], model=str(base), training=training, fresh=True).runs[0].steps == 2
    assert not folder.exists()
