"""Answers people's questions with a worker that stays warm between them. Runs come first: it gives the device up.

The worker is the one of this process. It ends when no question has come for a while, and at once, even in the middle of
an answer, when a run waits for its device. Another session gets the device when no question has come for two seconds.
"""

import math
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple

from backprop_core.errors import BackpropError, DeviceBusy, Interrupted
from backprop_core.evaluation.stages import reply
from backprop_core.models import devices
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import AdapterRef, BaseRef, Generated
from backprop_core.schema.specs import GenerationSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.worker.client import Worker
from backprop_core.worker.gpu_slot import is_asked, is_taken, is_wanted, slots_of
from tasks.runs import resolve_earlier, worker_process
from tasks.runs.sample_answers import precision_on

IDLE = 300.0  # seconds after the last answer; then the memory is free again
REST = 2.0  # seconds after the last answer; then the device is there for another session
LOOK = 0.25  # seconds between two looks whether a run waits for the device
SOON = 5.0  # seconds to take a device that was free a moment ago

Turn = dict[str, str]
OnText = Callable[[str], None]


class Model(NamedTuple):
    """What answers: a base, with an adapter or alone."""

    base: BaseRef
    adapter: AdapterRef | None
    trained: TrainSpec

    @property
    def alone(self) -> "Model":
        """Its base without the adapter."""
        return self._replace(adapter=None)


def model_of(ref: str, store: Store, *, base: str | None = None) -> Model:
    """The model behind a reference; `base` names that of a directory. Raises what `resolve_earlier.made` raises."""
    made = resolve_earlier.made(ref, store, model=base)
    if made.adapter:
        store.bring(made.adapter.digest)  # the worker asks no other place
    return Model(made.base, made.adapter, made.spec.training)


class ModelSession:
    """Answers one question at a time; others wait for their turn.

    `waits`: whether a question waits for a device that a run uses; else it is refused.
    """

    def __init__(self, config: Settings, *, waits: bool, idle: float = IDLE) -> None:
        self._config, self._waits, self._idle = config, waits, idle
        self._turn = threading.Lock()
        self._ends: BackpropError | None = None  # why the answer that is being written ends
        self._used = 0.0
        self._watched: Worker | None = None

    @cached_property
    def _device(self) -> Literal["cpu", "cuda"]:
        return devices.resolve("auto")

    def model(self, ref: str, base: str | None = None) -> Model:
        """The model behind a reference; `base` names that of a directory. Raises what `resolve_earlier.made` raises."""
        store = Store(self._config.store_path)
        try:
            return model_of(ref, store, base=base)
        finally:
            store.close()

    def warm(self) -> None:
        """Start the worker, so that it has imported what it needs when the first question comes."""
        with self._turn:
            self._used = time.monotonic()
            self._started()

    def answer(self, model: Model, messages: list[Turn], spec: GenerationSpec, on_text: OnText) -> Generated:
        """The answer in a conversation; `on_text` gets its pieces.

        Raises DeviceBusy, Interrupted if it was stopped, and what the worker raises.
        """
        with self._turn:
            self._ends = None
            self._bring(model)
            try:
                return self._worker().call(
                    reply,
                    key="",
                    on_event=lambda event: self._heard(event["text"], on_text),
                    base=model.base,
                    adapter=model.adapter,
                    messages=messages,
                    spec=spec,
                    precision=precision_on(self._device, model.trained),
                    device=self._device,
                )
            finally:
                self._used = time.monotonic()

    def _bring(self, model: Model) -> None:
        """Have the adapter here: between two questions the limit of the local copy may have removed it."""
        if model.adapter:
            store = Store(self._config.store_path)
            try:
                store.bring(model.adapter.digest)
            finally:
                store.close()

    def stop(self) -> None:
        """End the answer that is being written."""
        self._ends = Interrupted("the answer was stopped", hint="ask again")

    def close(self) -> None:
        """End the answer that is being written, and the worker."""
        self.stop()
        with self._turn:
            worker_process.stop()

    def _heard(self, text: str, on_text: OnText) -> None:
        if self._ends:
            raise self._ends
        on_text(text)

    def _worker(self) -> Worker:
        """The worker, with its device. Raises DeviceBusy."""
        worker = self._started()
        worker.wait_for_slot(patience=math.inf if self._waits else SOON)
        if worker.alive and not worker.has_device:
            worker_process.stop()
            raise busy()
        return worker

    def _started(self) -> Worker:
        """The worker, which may wait for its device yet. Raises DeviceBusy."""
        self._give_way()
        if not self._waits and not worker_process.is_running():
            self._check_free()
        worker = worker_process.worker(self._config, TrainSpec(device=self._device), rests=True)
        if worker is not self._watched:
            self._watched = worker
            threading.Thread(target=self._look, args=(worker,), name="model session", daemon=True).start()
        return worker

    def _give_way(self) -> None:
        """End the worker if a run waits for its device. Raises DeviceBusy, unless questions wait."""
        if self._watched and self._watched.alive and is_needed(self._watched):
            worker_process.stop()
            if not self._waits:
                raise busy()

    def _check_free(self) -> None:
        store = Store(self._config.store_path)
        if is_taken(slots_of(store, self._device, 1, self._config.cpu_slot)):
            raise busy()

    def _look(self, worker: Worker) -> None:
        """End the worker when it is idle, or a run waits for its device, or a session while it rests."""
        while worker.alive:
            time.sleep(LOOK)
            needed, rested = is_needed(worker), time.monotonic() - self._used
            if needed:
                self._ends = busy()
            over = rested > self._idle or (rested > REST and worker.has_device and is_asked(worker.slots))
            if (needed or over) and self._turn.acquire(blocking=False):
                worker_process.stop()
                self._turn.release()


def is_needed(worker: Worker) -> bool:
    """Whether a run waits for the device that this worker has."""
    return worker.has_device and is_wanted(worker.slots)


def busy() -> DeviceBusy:
    return DeviceBusy("a run uses the device now, and runs come before questions", hint="ask again when it has ended")
