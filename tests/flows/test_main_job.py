"""The main job through all rooms: real Prefect, real MLflow, real model, real worker."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from peft import PeftModel
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort
from transformers import AutoModelForCausalLM, AutoTokenizer

from backprop_core.errors import ArtifactMissing, ConfigInvalid, InputNotFound, TimeLimit
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, ExportSpec, LoraSpec, MergeSpec, TrainSpec
from backprop_core.store import artifacts as store_module
from backprop_core.store.artifacts import Store
from flows.cli.config_layers import replayed
from flows.export import export
from flows.multi_run import multi_run
from flows.train import train
from tasks import tracking
from tasks.runs import prestart, resolve, worker_process

TRAINING = TrainSpec(steps=3, batch_size=8, lora=LoraSpec(rank=4))
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests, so that what one has made is in the cache of the next."""
    return shared_home


@pytest.fixture(scope="module")
def first(base, data, prefect, home) -> RunResult:
    """The job, done for the first time."""
    return run(base, data)


def run(base: Path, data: list[str], **changes) -> RunResult:
    parts = {
        "datasets": [DatasetSpec(path=path) for path in data],
        "model": str(base),
        "training": TRAINING,
        "export": ExportSpec(quantizations=["f16"]),
    }
    return multi_run(**(parts | changes))


def digests(result: RunResult) -> list[str]:
    return [digest for one in result.runs for digest in (one.tuned.digest, one.merged.digest)]


def test_everything_is_made_and_recorded(first):
    """Three datasets → three runs, a matrix, a merged adapter, a GGUF file; the same in MLflow and on the flow run."""
    result = first
    assert not any(stage.cached for stage in result.stages)
    assert result.status == "finished"
    assert [one.dataset.task for one in result.runs] == ["task0", "task1", "task2"]
    assert all(one.dataset.train_rows + one.dataset.heldout_rows <= 40 for one in result.runs)
    assert [[cell is None for cell in row] for row in result.evaluation.matrix] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert result.merged == result.runs[-1].merged
    assert result.runs[0].merged.digest == result.runs[0].tuned.digest
    assert result.runs[1].merged.digest != result.runs[1].tuned.digest
    [file] = result.gguf
    assert Path(file.path).stat().st_size == file.bytes
    assert file.fidelity["ids_equal"] and [one.prompt[:4] for one in file.answers] == ["Say "] * 2
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    assert tracking.show_run(settings(), result.run_id[:8]) == result
    assert worker_process._running is None
    check_prefect(result)


def test_every_record_names_its_run(first):
    """The record beside each artifact that a stage made, here or in the worker, has the run_id."""
    store = Store(settings().store_path)
    made = {stage.digest for stage in first.stages if stage.digest in store.digests()}
    assert {one.tuned.digest for one in first.runs} | {file.digest for file in first.gguf} <= made
    assert {store.record(digest)["run_id"] for digest in made} == {first.run_id}
    assert all(store.record(digest).get("run_id") for digest in store.digests())


def check_prefect(result: RunResult) -> None:
    """Another service reads the result back from the Prefect artifact."""
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)  # the newest 200 of the whole session
    [artifact] = [a for a in artifacts if a.key == "backprop-result" and result.run_id in str(a.data)]
    document = json.loads(str(artifact.data).removeprefix("```json\n").removesuffix("\n```"))
    assert document == result.model_dump(mode="json")
    [files] = [a for a in artifacts if a.key == "backprop-files" and a.flow_run_id == artifact.flow_run_id]
    assert f"| {result.gguf[0].quantization} |" in str(files.data) and "| it answers |" in str(files.data)
    [rows] = [a for a in artifacts if a.key == "backprop-data" and a.flow_run_id == artifact.flow_run_id]
    for one in result.runs:
        assert f"| {one.dataset.name} | {one.dataset.task} |" in str(rows.data)


def test_later_runs_train_at_half_the_rate(first):
    """The rate was left open: what the second and third run have trained with is half of what the first has."""
    store = Store(settings().store_path)
    rates = [store.record(one.tuned.digest)["spec"]["learning_rate"] for one in first.runs]
    assert rates == [5e-4, 2.5e-4, 2.5e-4]
    assert first.spec["training"]["later_learning_rate"] == 2.5e-4
    store.close()


def test_again_is_free(first, base, data, monkeypatch):
    """The same again: every stage from the cache, the same digests, and no worker is started."""
    monkeypatch.setenv("BACKPROPAGATE_WORKER_PYTHON", "/nowhere/python")
    second = run(base, data)
    assert all(stage.cached for stage in second.stages)
    assert digests(second) == digests(first)
    assert second.gguf == first.gguf
    assert second.evaluation == first.evaluation


def test_a_run_ends_in_time(first, base, data):
    """Beyond `max_seconds` nothing begins that is not in the cache: interrupted, with a code, and to be resumed."""
    assert run(base, data, max_seconds=1e-3).status == "finished"
    with pytest.raises(TimeLimit, match=r"time limit of 0\.001 s reached before train") as stopped:
        run(base, data, max_seconds=1e-3, training=TRAINING.model_copy(update={"seed": 7}))
    result = tracking.show_run(settings(), stopped.value.run_id)
    assert (result.status, result.error.code) == ("interrupted", "RUNTIME_TIME_LIMIT")
    assert worker_process._running is None and stopped.value.exit_status == 3


def test_replay_asks_for_the_same_again(first):
    """The spec of an earlier run decides the same results, and with a change others; a misspelt change is refused."""
    before, _ = prestart.asked(first.run_id[:10])
    store = Store(settings().store_path)
    again = replayed(before.spec, first.run_id, [])
    assert resolve.prepare("multi-run", again, store).digest() == before.digest()
    other = replayed(before.spec, first.run_id, ["training.seed=5"])
    assert other == again.model_copy(update={"training": again.training.model_copy(update={"seed": 5})})
    assert resolve.prepare("multi-run", other, store).digest() != before.digest()
    with pytest.raises(ConfigInvalid, match=r"training\.sed"):
        replayed(before.spec, first.run_id, ["training.sed=5"])


def test_a_store_is_shared_between_homes(first, base, data, home, monkeypatch, tmp_path):
    """Another home, the same store: nothing is done again."""
    monkeypatch.setenv("BACKPROPAGATE_STORE", str(home / "store"))
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "other"))
    second = run(base, data)
    assert all(stage.cached for stage in second.stages)
    assert digests(second) == digests(first)


def test_two_empty_homes_give_the_same_adapters(first, base, data, monkeypatch, tmp_path):
    """Nothing of a place, a time or a process is in a result."""
    moved = shutil.copytree(Path(data[0]).parent, tmp_path / "moved")
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "other"))
    second = run(base, [str(moved / Path(path).name) for path in data])
    assert digests(second) == digests(first)
    assert second.gguf[0].digest == first.gguf[0].digest


def test_only_what_changed_is_done_again(first, base, data):
    """A changed third dataset: the first two runs stay, the third is trained."""
    second = run(base, [*data[:2], data[0]])
    assert digests(second)[:4] == digests(first)[:4]
    assert [one.cached for one in second.runs] == [True, True, False]


def test_sequential_shares_the_first_run_and_differs_after_it(first, base, data):
    """The first run depends on no strategy; the second starts elsewhere."""
    slao = first
    sequential = run(base, data, merge=MergeSpec(strategy="sequential"))
    assert digests(sequential)[:2] == digests(slao)[:2]
    assert sequential.runs[0].cached
    assert sequential.runs[1].tuned.digest != slao.runs[1].tuned.digest
    assert all(one.merged.digest == one.tuned.digest for one in sequential.runs)


def test_fresh_and_removed_are_made_again_to_the_same_bits(first, base, data):
    """`fresh` looks at no cache; a tombstone is no hit. Both find what was there before."""
    from backprop_core.store.artifacts import Store

    again = run(base, data[:1], export=ExportSpec(), fresh=True)
    assert not any(stage.cached for stage in again.stages)
    assert digests(again) == digests(first)[:2]
    store = Store(settings().store_path)
    store.remove(first.runs[0].tuned.digest, "to see what happens")
    with pytest.raises(ArtifactMissing):
        store.verify(first.runs[0].tuned.digest)
    once_more = run(base, data[:1], export=ExportSpec())
    assert digests(once_more) == digests(first)[:2]
    assert not once_more.runs[0].cached
    store.verify(first.runs[0].tuned.digest)


def test_windows_of_one_dataset_are_one_task_and_a_watched_task_is_only_scored(base, data):
    """Two windows of one file: one column, one held-out set, other rows. A watched task: a column in every row."""
    windows = [DatasetSpec(path=data[0], task="all", skip=skip, rows=10) for skip in (0, 10)]
    watch = EvaluationSpec(watch=[DatasetSpec(path=data[2], task="general")])
    result = run(base, [], datasets=windows, evaluation=watch, export=ExportSpec())
    assert result.evaluation.tasks == ["all", "general"]
    assert [one.dataset.train_rows for one in result.runs] == [10, 10]
    assert result.runs[0].dataset.digest != result.runs[1].dataset.digest
    assert result.evaluation.backward_transfer is None
    assert [row[1] is not None for row in result.evaluation.matrix] == [True, True]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_train_is_one_run_and_export_finds_it(base, data, tmp_path):
    """A path, a model, some steps; then another file of what it made, under a name for people."""
    result = train(data=data[0], model=str(base), steps=2, training=TRAINING)
    assert result.runs[0].steps == 2
    out = tmp_path / "out"
    packages = ["merged", "lora", "gguf-lora"]
    exported = export(result.run_id[:10], quantization=["q8_0"], packages=packages, output=str(out))
    assert exported.merged == result.merged
    names = {"default-q8_0.gguf", "default-q8_0.Modelfile", "default-merged", "default-lora", "default-gguf-lora"}
    assert {path.name for path in out.iterdir()} == names | {".backprop-exports.json"}
    assert (out / "default-q8_0.gguf").stat().st_size == exported.gguf[0].bytes
    assert [package.package for package in exported.packages] == packages
    ids = AutoTokenizer.from_pretrained(out / "default-lora")("Say lamp", return_tensors="pt").input_ids
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "default-lora")
    fused = AutoModelForCausalLM.from_pretrained(out / "default-merged")
    assert torch.allclose(adapted(ids).logits, fused(ids).logits, atol=1e-5)


def test_what_cannot_work_is_refused_before_anything_is_written(base, data, monkeypatch, tmp_path):
    """A missing file is an error of its own code and leaves no run behind."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    with pytest.raises(InputNotFound):
        run(base, ["/nowhere/at-all.jsonl"])
    assert list((tmp_path / "store").glob("runs/*")) == []
    assert tracking.list_runs(settings()) == []


def test_a_killed_worker_is_replaced(base, data):
    """SIGKILL of the worker in a training: the stage is retried in a new one, and the run finishes."""
    training = TRAINING.model_copy(update={"steps": 40, "seed": 7, "checkpoint_seconds": 0})
    killed: list[int] = []

    def kill() -> None:
        while not any(settings().store_path.glob("checkpoints/*/step-*")):
            time.sleep(0.01)
        killed.append(worker_process.worker(settings(), training).pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(base, data[:1], training=training, export=ExportSpec())
    killer.join()
    assert killed
    assert result.status == "finished"
    assert result.runs[0].steps == 40


def test_a_warm_run_reads_each_artifact_once(first, base, data):
    """The same job again reads each file of the store's artifacts once at most, but for what it copies to MLflow."""
    opened: Counter[str] = Counter()
    artifacts = str(settings().store_path / "artifacts")
    watching = True

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(artifacts) and not is_copied(sys._getframe()):
            opened[str(arguments[0])] += 1

    store_module._verified[settings().store_path].clear()  # as in a new process
    sys.addaudithook(audit)
    again = run(base, data)
    watching = False
    assert all(stage.cached for stage in again.stages) and len(opened) > 10
    assert {path: count for path, count in opened.items() if count > 1} == {}


def is_copied(frame: FrameType | None) -> bool:
    """Whether a file is read to be an artifact of MLflow's."""
    while frame and frame.f_code.co_name != "log_directory":
        frame = frame.f_back
    return frame is not None


def test_the_cpu_is_named_where_something_is_trained(base, data, caplog):
    """That a training runs on the CPU is said by a run that trains; not by a cached one, nor by an export."""
    caplog.set_level("INFO", logger="tasks")

    def said(work: Callable[[], RunResult]) -> int:
        caplog.clear()
        work()
        return caplog.text.count("training runs on the CPU")

    other = TRAINING.model_copy(update={"seed": 11})
    made = run(base, data[:1], training=other)
    assert made.runs and not made.runs[0].cached and "training runs on the CPU" in caplog.text
    assert said(lambda: run(base, data[:1], training=other)) == 0
    assert said(lambda: export(made.run_id, "f16")) == 0
