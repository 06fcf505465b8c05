"""The worker process: jobs in, results and coded errors out, and it never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest
from filelock import FileLock, Timeout

from backprop_core.errors import GPUFault, Interrupted, NoLabelTokens, WorkerDied, WorkerStalled
from backprop_core.evaluation.stages import evaluate as evaluate_stage
from backprop_core.models import base as bases
from backprop_core.runtime import subprocesses
from backprop_core.schema.refs import Start, TrainResult
from backprop_core.schema.specs import LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.stages import train as train_stage
from backprop_core.worker import client
from backprop_core.worker.client import Worker
from tests.backprop_core import nano

SPEC = TrainSpec(steps=4, batch_size=4, precision="fp32", device="cpu", lora=LoraSpec(rank=4, dropout=0.1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with a base and two sets of rows."""
    root = tmp_path_factory.mktemp("worker")
    store = Store(root / "store")
    base = bases.resolve(ModelSpec(name=str(nano.build(root / "base"))), store)
    return store, base, [nano.commit_rows(store, nano.chats(12, seed=seed)) for seed in (1, 2)]


@pytest.fixture
def start(place):
    """Starts workers and ends them after the test."""
    store, *_ = place
    workers: list[Worker] = []

    def start(**options) -> Worker:
        workers.append(Worker(store, **{"slots": [store.root / "locks" / "cpu.lock"]} | options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def train(worker: Worker, place, rows: int, key: str, begin: Start | None = None, events=None) -> TrainResult:
    _, base, sets = place
    on_event = (lambda event: None) if events is None else events.append
    return worker.call(train_stage, key=key * 64, on_event=on_event, base=base, rows=sets[rows], spec=SPEC, start=begin)


def test_a_training_stops_at_its_deadline(start, place, warm_python):
    """What takes too long stops at a step with a checkpoint, and goes on from there to the bits of one that did not."""
    store, base, sets = place
    job = {"key": "5" * 64, "on_event": lambda event: None, "base": base, "rows": sets[0], "spec": SPEC, "start": None}
    worker = start(python=str(warm_python))
    whole = train(worker, place, 0, "6")
    with pytest.raises(Interrupted, match=r"step [1-3] of 4"):
        worker.call(train_stage, deadline=time.monotonic(), **job)
    worker.close()
    assert list(store.layout.checkpoints("5" * 64).iterdir())
    assert start(python=str(warm_python)).call(train_stage, **job).adapter == whole.adapter


def test_a_used_worker_gives_the_bits_of_a_fresh_one(start, place):
    """What an earlier job left behind changes nothing: neither weights nor random numbers."""
    used = start()
    events: list = []
    first = train(used, place, 0, "a", events=events)
    begin = Start(tuned=first.adapter, orthonormal=True)
    second = train(used, place, 1, "b", begin)
    used.close()
    fresh = start()
    assert train(fresh, place, 1, "c", begin).adapter == second.adapter
    assert train(fresh, place, 0, "d").adapter == first.adapter
    assert [event["done"] for event in events] == [1, 2, 3, 4]
    assert {event["total"] for event in events} == {4}


def test_an_error_keeps_its_code(start, place, caplog, warm_python):
    """What a stage raises in the child is raised in the parent, what it warns of is said there; the worker goes on."""
    store, base, _ = place
    worker = start(python=str(warm_python))
    rows = nano.commit_rows(store, [{"messages": [{"role": "user", "content": "only a question"}]}])
    score = {"adapter": None, "max_length": 512, "precision": "fp32", "device": "cpu", "base": base}
    with pytest.raises(NoLabelTokens):
        worker.call(evaluate_stage, key="e" * 64, on_event=print, heldout=rows, **score)
    rows = nano.commit_rows(store, nano.chats(3))
    assert worker.call(evaluate_stage, key="f" * 64, on_event=print, heldout=rows, **score).rows == 3
    short = score | {"max_length": 64}
    assert worker.call(evaluate_stage, key="a" * 64, on_event=print, heldout=rows, **short).rows > 0
    assert "longer than 64 tokens" in caplog.text


class Interrupter:
    """Raises KeyboardInterrupt at each line of what waits for a worker: at one more with every call."""

    FILES = (client.__file__, subprocesses.__file__, subprocess.__file__)

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, *_: object) -> "Interrupter | None":
        if frame.f_code.co_filename not in self.FILES:
            return None
        place = frame.f_code.co_name, frame.f_lineno
        if place not in self.seen:
            self.seen.add(place)
            sys.settrace(None)
            raise KeyboardInterrupt
        return self


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that the interrupts left open
def test_an_interrupt_at_any_moment_leaves_a_worker_that_can_be_ended(start, place):
    """Ctrl-C at every line of the wait for a job; then the worker does one more, and ends by itself when told."""
    _, base, sets = place
    worker, interrupter = start(), Interrupter()
    score = {"adapter": None, "max_length": 512, "precision": "fp32", "device": "cpu", "base": base, "heldout": sets[0]}

    def interrupted() -> bool:
        try:
            sys.settrace(interrupter)
            worker.call(evaluate_stage, key="3" * 64, on_event=lambda event: None, **score)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    while interrupted():
        pass
    assert {"call", "_wait", "wait_for_slot", "drain"} <= {function for function, _ in interrupter.seen}
    worker.close()
    assert worker._process.returncode == 0, "it was killed"


def test_a_killed_worker_is_a_retryable_error(start, place):
    """SIGKILL from outside, as the OOM killer does it: coded, and the device is free at once."""
    store, *_ = place
    worker = start()
    train(worker, place, 0, "a")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed") as caught:
        train(worker, place, 1, "b")
    assert caught.value.retryable
    with FileLock(store.root / "locks" / "cpu.lock", timeout=2):
        pass


def test_a_stuck_worker_is_ended(start, place):
    """SIGSTOP in the middle of a training: alive, but no step comes; coded, retryable, and it goes on from there."""
    worker, done = start(), []

    def stop(event) -> None:
        if event["done"] >= 3:
            os.kill(worker.pid, signal.SIGSTOP)
            worker.stall_seconds = 0.5

    _, base, sets = place
    spec = SPEC.model_copy(update={"steps": 60, "checkpoint_seconds": 0})
    job = {"base": base, "rows": sets[0], "spec": spec, "start": None}
    with pytest.raises(WorkerStalled, match=r"0\.5 s during train") as caught:
        worker.call(train_stage, key="9" * 64, on_event=stop, **job)
    assert caught.value.retryable and not worker.alive
    start().call(train_stage, key="9" * 64, on_event=lambda event: done.append(event["done"]), **job)
    assert done[0] >= 3 and done[-1] == 60


FAULTY = r"""
import sys, torch
from backprop_core.worker import main
def fail(module, arguments):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand more")
torch.nn.modules.module.register_module_forward_pre_hook(fail)
main.main(sys.argv[-1])
"""


def test_a_fault_of_the_gpu_is_retryable_and_ends_the_worker(start, place, tmp_path):
    """CUDA can do nothing more in that process: a retry has to get another one."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    python = interpreter(tmp_path, f"{sys.executable} {tmp_path / 'faulty.py'}")
    worker = start(slots=[tmp_path / "lock"], python=python)
    with pytest.raises(GPUFault, match=r"illegal memory access was encountered; ") as caught:
        train(worker, place, 0, "8")
    assert caught.value.retryable and not worker.alive


UNSLOTH = """
import sys
assert "transformers" not in sys.modules
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tests.backprop_core.training.stand_in_unsloth import through_causal_lm
class FastLanguageModel:
    def from_pretrained(model_name, max_seq_length, dtype, load_in_4bit, **options):
        assert (max_seq_length, dtype, load_in_4bit) == (2048, torch.float32, False)
        model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype)
        return through_causal_lm(model), AutoTokenizer.from_pretrained(model_name)
    def patch_peft_model(model, use_gradient_checkpointing):
        assert model.peft_config and not use_gradient_checkpointing
"""


def test_another_interpreter_trains_with_unsloth(start, place, tmp_path):
    """Another Python serves the job; Unsloth, here a stand-in, is imported first, loads the base and has its say."""
    (tmp_path / "unsloth.py").write_text(UNSLOTH)
    (tmp_path / "unsloth-2026.10.9.dist-info").mkdir()
    (tmp_path / "unsloth-2026.10.9.dist-info" / "METADATA").write_text("Name: unsloth\nVersion: 2026.10.9\n")
    python = interpreter(tmp_path, f"env PYTHONPATH={tmp_path}:$PYTHONPATH {sys.executable}")
    _, base, sets = place
    spec = SPEC.model_copy(update={"backend": "unsloth"})
    worker, losses = start(slots=[tmp_path / "lock"], python=python, backend="unsloth"), []
    job = {"base": base, "rows": sets[0], "spec": spec, "start": None}
    worker.call(train_stage, key="7" * 64, on_event=lambda e: losses.append(e["values"]["loss"]), **job)
    assert len(losses) == 4


def interpreter(folder: Path, command: str) -> str:
    """A program that passes for another Python."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_one_worker_at_a_time_has_the_device(start, place):
    """The slot is held from before the first job to the end of the worker."""
    store, *_ = place
    worker = start()
    worker.wait_for_slot()
    with pytest.raises(Timeout):
        FileLock(store.root / "locks" / "cpu.lock", timeout=0).acquire()
    worker.close()
    with FileLock(store.root / "locks" / "cpu.lock", timeout=0):
        pass


PARENT = """
import sys, time
from pathlib import Path
from backprop_core.store.artifacts import Store
from backprop_core.worker.client import Worker
worker = Worker(Store(Path(sys.argv[1])), slots=[Path(sys.argv[1]) / "locks" / "other.lock"])
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_the_worker_dies_with_its_parent(tmp_path):
    """SIGKILL of the parent alone: the pipe closes and the child is gone, whatever it was importing."""
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.is_dir()
        parent.kill()
    deadline = time.monotonic() + 15
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(process: Path) -> bool:
    """Whether a process runs; one that nobody reaped does not."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
