"""Spreads independent stages over Dask workers, on this machine or on others that have the same store.

A body says which calls do not depend on each other, and then makes them itself, one after another. Until it does, each
runs ahead in a thread of its own, whose stages are computed on the workers. So a run is recorded in the order of its
body, wherever its stages were computed, and the digests are those of one machine.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.optional_packages import require
from backprop_core.runtime.settings import Settings
from tasks.runs import worker_process

if TYPE_CHECKING:
    from prefect import State, Task
    from prefect_dask.client import PrefectDaskClient

LOCAL = "local:"
PROFILE = "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"  # it looks at each worker's threads a hundred times a second
MOST = 64  # calls that run ahead at once
LAST = 5.0  # seconds for the last event of a stage to arrive


class Done(NamedTuple):
    """What came of a stage, and why it was not taken from the cache."""

    state: "State[Any]"
    seconds: float
    why: list[str]
    events: Sequence[dict[str, Any]] = ()


class Ahead:
    """Stages that are computed once for all who ask for them at the same time, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Future[Done]] = {}
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="ahead")

    def begin(self, work: Sequence[Callable[[], object]]) -> None:
        """Make these calls in threads, in the context of this one. Their errors come again in the body."""
        for call in work:
            self._threads.submit(copy_context().run, call)

    def share(self, key: str, compute: Callable[[], Done]) -> Done:
        """What came of a stage; computed here unless another thread computes it, or has."""
        with self._lock:
            mine = key not in self._made
            future = self._made.setdefault(key, Future())
        if mine:
            try:
                future.set_result(compute())
            except BaseException as error:  # noqa: BLE001 - for all who wait, this thread too
                future.set_exception(error)
        return future.result()

    def forget(self, key: str) -> None:
        """The body has it: who asks again finds it in the cache."""
        with self._lock:
            self._made.pop(key, None)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Dask:
    """The workers of `BACKPROPAGATE_FAN_OUT`: a number of them on this machine, or those of a scheduler elsewhere."""

    def __init__(self, config: Settings) -> None:
        require(["prefect_dask"], what="BACKPROPAGATE_FAN_OUT", extra="dask")
        self._address = str(config.fan_out)
        self.topic = f"backprop-{uuid4().hex}"
        self._cleanup = ExitStack()
        self._lock = threading.Lock()
        self._client: PrefectDaskClient | None = None
        self._events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    @property
    def is_local(self) -> bool:
        """Whether its workers are on this machine, and read every file that this process reads."""
        return self._address.startswith(LOCAL)

    def run(self, task: "Task[..., Any]", key: str, parameters: dict[str, Any]) -> tuple["State[Any]", float, Any]:
        """Run a task on a worker: its state, the seconds that it took there, and its events."""
        began, client = time.monotonic(), self._connected()
        future = client.submit(task, parameters=parameters, return_type="state", pure=False)
        state = future.result()
        events = self._events_of(key) if state.name != "Cached" else []
        seconds = next((event["seconds"] for event in events if "seconds" in event), time.monotonic() - began)
        return state, seconds, [event["event"] for event in events if "event" in event]

    def _events_of(self, key: str) -> list[dict[str, Any]]:
        """The events of a stage that has ended; the last one may still be on its way."""
        deadline = time.monotonic() + LAST
        while not any("seconds" in event for event in self._events[key]) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._events.pop(key)

    def _connected(self) -> "PrefectDaskClient":
        """The client; first starts the workers that are of this machine. Raises ConfigInvalid without a scheduler."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
                self._client.subscribe_topic(self.topic, self._note)
            return self._client

    def _connect(self) -> "PrefectDaskClient":
        from distributed import LocalCluster
        from prefect_dask.client import PrefectDaskClient

        logging.getLogger("distributed").setLevel(logging.WARNING)
        where: Any = self._address
        if self.is_local:
            count = int(self._address.removeprefix(LOCAL))
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=None,
                env={"PREFECT_LOGGING_LEVEL": "WARNING", PROFILE: "False"},
            )
            where = self._cleanup.enter_context(cluster)
        try:
            return self._cleanup.enter_context(PrefectDaskClient(where, set_as_default=False))
        except OSError as error:
            raise ConfigInvalid(
                f"no Dask scheduler answers at {self._address}",
                hint="start it (dask scheduler), or unset BACKPROPAGATE_FAN_OUT",
            ) from error

    def _note(self, event: tuple[Any, dict[str, Any]]) -> None:
        self._events[event[1]["key"]].append(event[1])

    def close(self) -> None:
        """Give back the devices, and end what was started here."""
        with self._lock:
            if self._client:
                with suppress(OSError):
                    self._client.run(worker_process.stop)
            self._cleanup.close()
            self._client = None
