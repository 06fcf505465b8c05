"""What a run's spec leaves open: chosen before anything is computed, on record, and the same every time."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.errors import GPUNotAvailable
from backprop_core.models.devices import torch_without_cuda
from backprop_core.schema.refs import BaseRef, Choice, SourceRef
from backprop_core.schema.specs import DatasetSpec, ModelSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store, file_digest
from backprop_core.training.presets import PRESETS
from tasks.runs import prepared_run, resolve
from tasks.runs.resolve_defaults import decide
from tests.backprop_core import nano

LONG = {"steps": 1000, "batch_size": 16}  # hours on any CPU, with seven billion parameters


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same everywhere."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"))


@pytest.fixture
def large(base: Path, tmp_path: Path) -> Path:
    """A base whose config.json is that of a Qwen2.5-7B."""
    directory = shutil.copytree(base, tmp_path / "large")
    shape = PRESETS["qwen2.5-7b"].shape.model_dump()
    (directory / "config.json").write_text(json.dumps(shape))
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(400)))
    return file


def decided(
    base: Path, data: Path, store: Store, *, later: bool = False, **given: Any
) -> tuple[TrainSpec, dict[str, Choice]]:
    spec = RunSpec(datasets=[DatasetSpec(path=str(data))], training=TrainSpec(**given))
    source = SourceRef(digest=file_digest(data) if data.is_file() else "0" * 64, path=str(data))
    made, choices = decide(spec, BaseRef(name=str(base), digest="0" * 64), [source], store, later=later)
    return made.training, {choice.field.removeprefix("training."): choice for choice in choices}


def test_what_is_left_open_is_chosen_and_what_is_given_stays(base: Path, data: Path, store: Store) -> None:
    """The spec of the record has every value; each that was not given has a reason beside it, the others none."""
    training, choices = decided(base, data, store)
    assert (training.learning_rate, training.epochs, training.batch_size, training.max_length) == (5e-4, 3, 8, 512)
    assert (training.device, training.precision) == ("cpu", "fp32")
    assert choices.keys() >= {"device", "learning_rate", "epochs", "batch_size", "max_length", "lora.rank"}
    assert all(choice.reason for choice in choices.values())
    given = {"learning_rate": 1e-3, "epochs": 3, "lora": {"rank": 4}, "precision": "auto", "device": "cpu"}
    mine, others = decided(base, data, store, **given)
    assert (mine.learning_rate, mine.lora.rank, mine.batch_size) == (1e-3, 4, 8)
    assert not others.keys() & {"learning_rate", "epochs", "lora.rank", "device"} and "lora.alpha" in others


def test_a_later_run_of_a_line_takes_half_the_rate(base: Path, data: Path, store: Store) -> None:
    """Only where it was not given."""
    training, choices = decided(base, data, store, later=True)
    assert training.learning_rate == 2.5e-4 and "half" in choices["learning_rate"].reason
    assert decided(base, data, store, later=True, learning_rate=5e-4)[0].learning_rate == 5e-4


def test_later_runs_of_a_multi_run_take_half_the_rate(base: Path, data: Path, store: Store) -> None:
    """As the next run of a line does; only where no rate was given, and in no run's own spec."""
    every = {"datasets": [DatasetSpec(path=str(data), task=task) for task in ("a", "b")]}
    sources = [SourceRef(digest=file_digest(data), path=str(data))] * 2

    def training(**given: Any) -> TrainSpec:
        spec = RunSpec(training=TrainSpec(**given), **every)
        return decide(spec, BaseRef(name=str(base), digest="0" * 64), sources, store, later=False)[0].training

    left = training()
    assert (left.learning_rate, left.later_learning_rate) == (5e-4, 2.5e-4)
    first, later = left.of_run(later=False), left.of_run(later=True)
    assert first == decided(base, data, store)[0] and later == first.model_copy(update={"learning_rate": 2.5e-4})
    given = training(learning_rate=1e-3)
    assert given.later_learning_rate is None and given.of_run(later=True).learning_rate == 1e-3
    assert training(later_learning_rate=1e-5).of_run(later=True).learning_rate == 1e-5


def test_steps_that_are_given_make_neither_small_batches_nor_epochs(base: Path, data: Path, store: Store) -> None:
    """A trial of two steps is not one of single rows."""
    training, choices = decided(base, data, store, steps=2)
    assert training.batch_size == 8 and "epochs" not in choices


def test_the_same_command_has_the_same_spec_and_reads_the_data_once(base: Path, data: Path, store: Store) -> None:
    """What the data holds is noted by its digest: the second time nothing is read."""
    spec = RunSpec(model=ModelSpec(name=str(base)), datasets=[DatasetSpec(path=str(data))])
    first = resolve.prepare("train", spec, store)
    [note] = store.root.glob("notes/data/*.json")
    assert json.loads(note.read_text())["examples"] == 400
    seen = note.stat().st_mtime_ns
    assert resolve.prepare("train", spec, store) == first and note.stat().st_mtime_ns == seen
    prepared_run.save(first, "a" * 32, store)
    assert prepared_run.load("a" * 32, store) == first and first.defaults  # what resume reads


def test_data_that_cannot_be_read_is_left_to_the_run_to_report(base: Path, tmp_path: Path, store: Store) -> None:
    """The failure belongs into its record; until then nothing is chosen by the data."""
    (tmp_path / "bad.jsonl").write_text("no rows\n")
    training, choices = decided(base, tmp_path / "bad.jsonl", store)
    assert "without data" in choices["batch_size"].reason and training.batch_size == 16


def test_a_model_of_unknown_size_is_trained_as_the_spec_says(
    base: Path, data: Path, tmp_path: Path, store: Store
) -> None:
    """Nothing is chosen but the device, and that by the size of the weights."""
    strange = shutil.copytree(base, tmp_path / "strange")
    (strange / "config.json").write_text('{"model_type": "zebra"}')
    training, choices = decided(strange, data, store)
    assert list(choices) == ["device"] and training.batch_size == TrainSpec().batch_size


def test_a_cpu_trains_what_takes_minutes_or_what_it_is_told_to(large: Path, data: Path, store: Store) -> None:
    """Hours on a CPU are refused unless device=cpu is given."""
    with pytest.raises(GPUNotAvailable, match=r"about \d+\.\d h on this CPU") as caught:
        decided(large, data, store, **LONG)
    assert "training.device=cpu" in caught.value.hint
    assert decided(large, data, store, device="cpu", **LONG)[0].device == "cpu"
    with pytest.raises(GPUNotAvailable):
        decided(large, data, store, device="cuda", **LONG)


@pytest.mark.skipif(torch_without_cuda() is None, reason="torch has CUDA here")
def test_a_driver_beside_a_torch_without_cuda(
    large: Path, data: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to get the other torch; where minutes are enough, the record says it."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    for given in ({"device": "cuda"}, LONG):
        with pytest.raises(GPUNotAvailable, match="built without CUDA") as caught:
            decided(large, data, store, **given)
        assert caught.value.hint.startswith("pip install --force-reinstall 'torch==")
    assert "built without CUDA" in decided(large, data, store, steps=1, batch_size=1)[1]["device"].reason
