"""A stage on a Dask worker, which keeps one worker process of ours with the base in memory, as a flow run does.

Events of the stage go to the parent by a topic of Dask's. After a while without work, the device is given back.
"""

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from distributed import get_worker
from pydantic import BaseModel

from backprop_core.errors import Interrupted
from backprop_core.runtime import log_context
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import artifacts_in
from backprop_core.schema.specs import TrainSpec
from backprop_core.stages import Stage, every
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from backprop_core.worker.client import OnEvent
from tasks.runs import shared_work, worker_process
from tasks.stages.parent_place import ParentPlace

REST = 60.0  # seconds without work after which the device is free for others
_turn = threading.Lock()  # one stage at a time
_resting: list[threading.Timer] = []


@dataclass(frozen=True)
class Order:
    """What a Dask worker needs to know of a stage beside its parameters."""

    stage: str
    training: TrainSpec
    seconds: float  # until the run's deadline
    topic: str
    again: bool  # even if it is cached
    about: dict[str, str | None]  # the run, for records and logs


def work(order: Order, parameters: dict[str, Any]) -> BaseModel:
    """Compute a stage, and send what happens, at last how long it took."""
    began, worker = time.monotonic(), get_worker()
    stage = every()[order.stage]
    key = stage_key(stage.name, parameters)

    def send(**event: Any) -> None:
        worker.log_event(order.topic, {"key": key, **event})

    with _turn, log_context.about(**order.about):
        wake()
        try:
            return carried_out(stage, key, order, parameters, lambda event: send(event=event))
        finally:
            rest()
            send(seconds=time.monotonic() - began)


def carried_out(
    stage: Stage[BaseModel], key: str, order: Order, parameters: dict[str, Any], on_event: OnEvent
) -> BaseModel:
    """Compute a stage where it is declared to run, on this machine."""
    config, deadline = own_settings(), time.monotonic() + order.seconds
    store = Store(config.store_path)
    try:
        with store.using({ref.digest for ref in artifacts_in(list(parameters.values()))}):
            if stage.runs_in == "parent":
                return stage.carry_out(parameters, ParentPlace(store, key, stage.name))
            process = worker_process.worker(config, order.training, stage.name)
            job = partial(process.call, stage, key=key, on_event=on_event, deadline=deadline, **parameters)
            return shared_work.carried_out(
                stage, key, parameters, store, job, again=order.again, beat=partial(check, deadline)
            )
    finally:
        store.close()


def check(deadline: float) -> None:
    """Raise Interrupted once there is no time left to wait for another machine."""
    if time.monotonic() > deadline:
        raise Interrupted("another machine does the same training", hint="resume the run")


def own_settings() -> Settings:
    """The settings, with a CPU slot for each worker of a cluster that a run has started here: these have numbers."""
    config, name = settings(), get_worker().name
    return config.model_copy(update={"cpu_slot": config.cpu_slot + name}) if isinstance(name, int) else config


def wake() -> None:
    """There is work again."""
    while _resting:
        _resting.pop().cancel()


def rest() -> None:
    """End the worker process after a while."""
    timer = threading.Timer(REST, worker_process.stop)
    timer.daemon = True
    _resting.append(timer)
    timer.start()
