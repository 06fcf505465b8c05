"""A session answers from one warm worker, gives the device to runs, and leaves nothing behind."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from backprop_core.errors import DeviceBusy, Interrupted, WorkerDied
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import Generated
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store
from backprop_core.worker import gpu_slot
from tasks.runs import model_session, worker_process
from tasks.runs.model_session import ModelSession
from tests import tiny_line

ASKED = [{"role": "user", "content": "Which team takes this request?\nI got the wrong radio. Thanks!"}]
SPEC = GenerationSpec(max_new_tokens=40)
LONG = GenerationSpec(max_new_tokens=1500)  # the adapter repeats itself: seconds
pytestmark = pytest.mark.usefixtures("warm_worker")


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of the device of a home with a line."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    tiny_line.write(settings())
    return Store(settings().store_path).layout.lock("cpu")


@pytest.fixture
def begin(slot: Path) -> Iterator[Callable[..., ModelSession]]:
    """Begins sessions and closes them after the test."""
    made: list[ModelSession] = []

    def begin(**options: object) -> ModelSession:
        made.append(ModelSession(settings(), **{"waits": False} | options))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for session in made:
        session.close()


def ask(session: ModelSession, ref: str = "support", on_text: Callable[[str], None] = lambda _: None) -> Generated:
    return session.answer(session.model(ref), ASKED, SPEC, on_text)


def test_an_adapter_that_left_between_two_questions_comes_back(
    begin: Callable[..., ModelSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the local copy of a store may remove it, and the worker asks no other place."""
    session = begin()
    model = session.model("support")
    assert model.adapter
    place = Store(settings().store_path).layout.artifact(model.adapter.digest)
    aside = place.rename(tmp_path / "aside")
    monkeypatch.setattr(Store, "elsewhere", staticmethod(lambda _, digest: aside.rename(place)))
    assert session.answer(model, ASKED, SPEC, lambda _: None).text


def ask_long(session: ModelSession, on_text: Callable[[str], None]) -> Generated:
    return session.answer(session.model("support"), ASKED, LONG, on_text)


def eventually(true: Callable[[], bool], within: float = 60.0) -> bool:
    deadline = time.monotonic() + within
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


def test_an_answer_comes_piece_by_piece_from_one_worker(begin: Callable[..., ModelSession]) -> None:
    """The pieces come before the answer is complete; the next model answers from the same process."""
    session, pieces = begin(), list[str]()
    made = ask(session, on_text=pieces.append)
    assert len(pieces) > 3 and made.text == "".join(pieces)
    worker = worker_process.worker(settings(), session.model("support").trained)
    alone = session.answer(session.model("support").alone, ASKED, SPEC, lambda _: None)
    assert alone.text != made.text and worker is worker_process.worker(settings(), session.model("support").trained)
    assert ask(session, "support@1") == made


def test_a_warm_session_answers_from_the_worker_that_is_there(begin: Callable[..., ModelSession]) -> None:
    """It is started before the first question, and given up like any other."""
    session = begin(waits=True)
    session.warm()
    worker = worker_process.worker(settings(), session.model("support").trained)
    assert ask(session).tokens and worker is worker_process.worker(settings(), session.model("support").trained)
    assert eventually(lambda: worker.has_device)
    with gpu_slot.taken(worker.slots):
        pass


def test_a_device_in_use_is_said_at_once(begin: Callable[..., ModelSession], slot: Path) -> None:
    """While a run has the device a question is refused with a code, and no worker waits; then it is answered."""
    slot.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(slot):
        began = time.monotonic()
        with pytest.raises(DeviceBusy, match="runs come before"):
            ask(begin())
        assert time.monotonic() - began < 5 and not worker_process.is_running()
    assert ask(begin()).tokens


@pytest.fixture
def slow_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a worker starts for longer than a session waits for a device."""
    python = settings().worker_python or sys.executable
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec "{python}" "$@"\n', encoding="utf-8")
    slow.chmod(0o755)
    monkeypatch.setenv("BACKPROPAGATE_WORKER_PYTHON", str(slow))
    monkeypatch.setattr(model_session, "SOON", 0.5)


@pytest.mark.usefixtures("slow_start")
def test_a_worker_that_starts_slowly_is_not_taken_for_a_run(begin: Callable[..., ModelSession]) -> None:
    """The device is free, however long the start takes."""
    assert ask(begin()).tokens


@pytest.mark.usefixtures("slow_start")
def test_a_run_that_begins_during_the_start_has_the_device(begin: Callable[..., ModelSession], slot: Path) -> None:
    """The question is refused as soon as the worker has started and waited; then it is answered."""
    session = begin()
    session.warm()
    with gpu_slot.taken([slot]), pytest.raises(DeviceBusy, match="runs come before"):
        ask(session)
    assert ask(session).tokens


def test_a_run_gets_the_device_from_an_idle_session(begin: Callable[..., ModelSession], slot: Path) -> None:
    """A worker that waits for the device has it within a second or two; the session answers again after it."""
    session = begin()
    ask(session)
    with gpu_slot.taken([slot]):
        assert eventually(lambda: not worker_process.is_running())
    assert ask(session).tokens


def test_a_run_gets_the_device_in_the_middle_of_an_answer(begin: Callable[..., ModelSession], slot: Path) -> None:
    """The answer ends with a code that says why, and the pieces so far were heard."""
    session, pieces, got = begin(), list[str](), threading.Event()

    def run() -> None:
        with gpu_slot.taken([slot]):
            got.set()

    def hear(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 1:
            threading.Thread(target=run).start()
        time.sleep(0.1)

    with pytest.raises(DeviceBusy):
        ask_long(session, hear)
    assert pieces and got.wait(60)


def test_a_session_that_waits_ends_no_answer_of_another(begin: Callable[..., ModelSession], slot: Path) -> None:
    """The answer is complete; the other session has the device soon after it."""
    session, pieces, got = begin(waits=True), list[str](), threading.Event()

    def other() -> None:
        with gpu_slot.taken([slot], rests=True):
            got.set()

    def hear(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 1:
            threading.Thread(target=other).start()
            time.sleep(0.6)  # it looks more than once meanwhile

    made = ask_long(session, hear)
    assert made.text == "".join(pieces) and got.wait(30)


def test_a_question_that_waits_gives_way_first(begin: Callable[..., ModelSession], slot: Path) -> None:
    """Asked again while a run waits, it lets the run go before it; then it is answered."""
    session, order, threads = begin(waits=True), list[str](), list[threading.Thread]()

    def run() -> None:
        with gpu_slot.taken([slot]):
            order.append("run")

    def hear(text: str) -> None:
        if not threads:
            threads.append(threading.Thread(target=run))
            threads[0].start()
        time.sleep(0.05)

    with pytest.raises(DeviceBusy):
        ask_long(session, hear)
    assert ask(session).tokens and order == ["run"]


def test_a_stopped_answer_ends_and_the_next_is_whole(begin: Callable[..., ModelSession]) -> None:
    """Stop ends it at the next piece; the worker lives, and what was stopped leaves nothing in the next answer."""
    session = begin()
    whole, pieces = ask(session), list[str]()

    def hear(text: str) -> None:
        pieces.append(text)
        session.stop()

    with pytest.raises(Interrupted):
        ask_long(session, hear)
    assert len(pieces) < 100 and worker_process.is_running() and ask(session) == whole


def test_a_killed_worker_is_an_error_and_the_next_question_works(begin: Callable[..., ModelSession]) -> None:
    """SIGKILL in the middle of an answer: a code, and a new worker for the next one."""
    session = begin()
    whole = ask(session)
    worker = worker_process.worker(settings(), session.model("support").trained)

    def kill(_: str) -> None:
        with contextlib.suppress(ProcessLookupError):  # pieces that were already sent arrive after the kill
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerDied):
        ask_long(session, kill)
    assert ask(session) == whole


def test_the_memory_is_free_when_nobody_asks(begin: Callable[..., ModelSession], slot: Path) -> None:
    """After the idle time the process is gone and the device free; the next question starts another."""
    session = begin(idle=0.5)
    ask(session)
    pid = worker_process.worker(settings(), session.model("support").trained).pid
    assert eventually(lambda: not worker_process.is_running() and not psutil.pid_exists(pid))
    with FileLock(slot, timeout=0):
        pass
    assert ask(session).tokens
