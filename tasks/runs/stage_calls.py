"""Calls the stages of a flow run as Prefect tasks: from the cache, in this process, or in the worker."""

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from prefect import Task
from prefect.logging import get_run_logger
from pydantic import BaseModel

from backprop_core.errors import ConfigInvalid, Interrupted, TimeLimit
from backprop_core.runtime import log_context
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.refs import GGUFRef, RowsRef, StageRecord, artifacts_in
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digests_in, stage_key
from backprop_core.store.key_changes import KeyChanges
from backprop_core.store.leases import Lease
from backprop_core.store.locks import held
from backprop_core.worker.client import Worker
from tasks.runs import disk_space, shared_work, worker_process
from tasks.runs.checkpoint_notes import CheckpointNotes
from tasks.runs.fan_out import Ahead, Dask, Done
from tasks.runs.outcome import Outcome
from tasks.runs.prepared_run import Prepared
from tasks.runs.progress import Progress, report
from tasks.runs.recomputed import Afresh
from tasks.runs.results import digest_in
from tasks.runs.shared_work import carried_out
from tasks.stages.cache_policy import is_recorded
from tasks.stages.labels import Labels, outcome
from tasks.stages.ollama import canary, register
from tasks.stages.parent_place import ParentPlace
from tasks.stages.stage_tasks import stage_task

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger(__name__)
LONG = 365 * 86_400.0  # seconds: a run without a deadline


class Executor(Protocol):
    """What calls the stages of a flow."""

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        """The result of a stage."""

    def ahead(self, work: Sequence[Callable[["Executor"], object]]) -> None:
        """Begin with calls that do not depend on each other, if there are workers to share them."""

    def serve(self, file: GGUFRef, heldout: RowsRef) -> dict[str, str]:
        """Make a GGUF file the model in Ollama that the spec names: its name, a prompt and its answer."""


class StageCalls:
    """Calls each stage as a Prefect task until the run's deadline. What it uses and makes is in the run's lease."""

    def __init__(
        self, run_id: str, prepared: Prepared, config: Settings, store: Store, lease: Lease, noted: Outcome
    ) -> None:
        self._run_id, self._prepared, self._spec = run_id, prepared, prepared.spec
        self._settings, self._store, self._lease, self._noted = config, store, lease, noted
        self._labels = Labels(prepared.live.version.heldout if prepared.live else {})
        self._changes = KeyChanges(store)
        self._afresh = Afresh(store.layout.run(run_id).fresh, asked=prepared.fresh)
        self._device_said = False
        self._dask, self._ahead = Dask(config) if config.fan_out else None, Ahead()
        self._noting = threading.Lock()  # what runs ahead notes beside the body
        self._checkpoints = CheckpointNotes(noted.journal, store, every=config.mlflow_checkpoint_seconds)
        limit = self._spec.max_seconds if flow_info(prepared.flow).trains else None
        self._deadline = time.monotonic() + limit if limit else math.inf

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        with log_context.about(stage=stage.name):
            return self._call(stage, parameters)

    def _call(self, stage: Stage[R], parameters: dict[str, Any]) -> R:
        key = stage_key(stage.name, parameters)
        if self._dask is None:
            done = self._compute(stage, key, parameters)
        else:
            done = self._ahead.share(key, lambda: self._compute(stage, key, parameters))
            self._ahead.forget(key)
        for event in done.events:
            self._event(stage.name, key, event)
        result: R = self._result(done)
        self._labels.learn(parameters, result)
        self._changes.learn(stage.name, key, parameters, result)
        self._changes.note(stage.name, key, parameters)
        cached, seconds = done.state.name == "Cached", round(done.seconds, 3)
        self._noted.staged(
            StageRecord(
                stage=stage.name,
                key=key,
                cached=cached,
                seconds=seconds,
                digest=digest_in(result),
                changed=[] if cached else done.why,
            )
        )
        took = "from the cache" if cached else f"{seconds:.1f} s"
        label = self._labels.name(stage.name, parameters)
        get_run_logger().info("%s (%s)", ": ".join(filter(None, [label, outcome(result)])), took)
        return result

    def ahead(self, work: Sequence[Callable[[Executor], object]]) -> None:
        if self._dask:
            self._ahead.begin([partial(call, Shared(self)) for call in work])

    def result_ahead(self, stage: Stage[R], parameters: dict[str, Any]) -> R:
        """The result of a stage for what runs ahead; it is noted when the body calls the stage."""
        key = stage_key(stage.name, parameters)
        result: R = self._result(self._ahead.share(key, lambda: self._compute(stage, key, parameters, ahead=True)))
        return result

    def close(self) -> None:
        """End what runs ahead."""
        self._ahead.close()
        if self._dask:
            self._dask.close()

    def _result(self, done: Done) -> Any:
        """What a stage made, or its error."""
        try:
            return done.state.result()
        except Interrupted as error:
            if time.monotonic() > self._deadline:
                raise self._late(f": {error.message}") from error
            raise

    def _compute(self, stage: Stage[R], key: str, parameters: dict[str, Any], *, ahead: bool = False) -> Done:
        """Run the task of a stage, which its record in the cache ends at once, and keep what it made."""
        with self._noting:
            self._lease.add(key)
            again = self._afresh.is_due(key)
            why = self._why(stage, key, parameters, again=again)
            label = self._labels.name(stage.name, parameters)
        is_new = again or not is_recorded(self._store, key)
        dask = self._dask if is_new and self._is_shared(stage, ahead=ahead) else None
        if dask is None:
            self._wait_for_device(stage, key)
        begin = time.monotonic()
        if is_new:
            self._check_limits(stage, parameters)
        if again and stage.name == "train":
            self._forget_checkpoints(key)
        with self._noting:
            self._afresh.begin(key)
        if dask:
            done = self._on_dask(dask, stage, key, parameters, label, again)._replace(why=why)
        else:
            state = self._task(stage, label, again)(**parameters, return_state=True)
            done = Done(state, time.monotonic() - begin, why)
        if done.state.is_completed():
            with self._noting:
                self._keep(stage.name, key, done.state.result())
            if done.state.name != "Cached":
                shared_work.end(stage, key, self._store)
        return done

    def _is_shared(self, stage: Stage[R], *, ahead: bool) -> bool:
        """Whether a stage is computed by a worker of Dask: all that need a device, and here what runs ahead, too.

        A stage of the parent may read a file that only this machine has.
        """
        return self._dask is not None and (stage.runs_in == "worker" or (ahead and self._dask.is_local))

    def _on_dask(
        self, dask: Dask, stage: Stage[R], key: str, parameters: dict[str, Any], label: str, again: bool
    ) -> Done:
        """Run the task of a stage on a worker of Dask. Raises ConfigInvalid if that one has another store."""
        from tasks.runs.dask_worker import Order, work

        seconds = min(self._deadline - time.monotonic(), LONG)
        about = log_context.current() | {"stage": stage.name}
        order = Order(stage.name, self._spec.training, seconds, dask.topic, again, about)
        state, took, events = dask.run(self._task(stage, label, again, partial(work, order)), key, parameters)
        if state.is_completed() and not is_recorded(self._store, key):
            raise ConfigInvalid(
                f"the Dask worker that computed {stage.name} has another store than {self._store.root}",
                hint="start the workers with the same BACKPROPAGATE_STORE, at the same path",
            )
        return Done(state, took, [], events)

    def _why(self, stage: Stage[R], key: str, parameters: dict[str, Any], *, again: bool) -> list[str]:
        """Why a stage is not taken from the cache."""
        if again:
            return ["--fresh"]
        return [] if is_recorded(self._store, key) else self._changes.why(stage.name, key, parameters)

    def serve(self, file: GGUFRef, heldout: RowsRef) -> dict[str, str]:
        export, prompt = self._spec.export, canary(heldout, self._store)
        path = self._store.local(file) / "model.gguf"
        return {"model": f"{export.ollama}:latest", "prompt": prompt, "answer": register(path, export, prompt)}

    def _wait_for_device(self, stage: Stage[R], key: str) -> None:
        """Wait until the worker has its device: the process that has it now may be computing this very stage."""
        if stage.runs_in == "worker" and not is_recorded(self._store, key):
            with self._noted.journal.waiting("device"):
                self._worker(stage).wait_for_slot(self._deadline)

    def _check_limits(self, stage: Stage[R], parameters: dict[str, Any]) -> None:
        """Raise TimeLimit or DiskFull if a stage cannot be computed any more."""
        if time.monotonic() > self._deadline:
            raise self._late(f" before {stage.name}")
        written = disk_space.kind_of(stage.name, parameters)
        disk_space.check(self._spec, self._store.root, stage=stage.name, kind=written)

    def _forget_checkpoints(self, key: str) -> None:
        """Remove a training's checkpoints, unless they are this run's own.

        Another run that trains the same now keeps its checkpoints until it is done.
        """
        if not self._afresh.has_begun(key):
            with held(self._store.lock(key), "another run trains the same"):
                shutil.rmtree(self._store.layout.checkpoints(key), ignore_errors=True)
            shared_work.forget_checkpoints(key, self._store)

    def _task(
        self, stage: Stage[R], label: str, again: bool, carry_out: Callable[[dict[str, Any]], R] | None = None
    ) -> Task[..., R]:
        return stage_task(
            stage,
            carry_out or (lambda given: self._carry_out(stage, given)),
            refresh_cache=again,
            result_storage=self._store.layout.cache_results,
            task_run_name=label,
        )

    def _keep(self, stage: str, key: str, result: BaseModel) -> None:
        """Keep what a stage made, now that Prefect has noted it; its checkpoints are needed no more."""
        self._noted.journal.stage_done(key, result)
        if stage == "train":
            self._checkpoints.end(key)
        self._afresh.end(key)
        self._lease.add(*digests_in(result.model_dump_json()))
        shutil.rmtree(self._store.layout.checkpoints(key), ignore_errors=True)

    def _carry_out(self, stage: Stage[R], parameters: dict[str, Any]) -> R:
        """Run a stage where it is declared to run."""
        key = stage_key(stage.name, parameters)
        if stage.runs_in == "worker":
            return self._work(stage, key, parameters)
        return stage.carry_out(parameters, ParentPlace(self._store, key, stage.name))

    def _work(self, stage: Stage[R], key: str, parameters: dict[str, Any]) -> R:
        """Run a stage in the worker process."""
        if stage.name == "train":
            self._say_device()
        for ref in artifacts_in(list(parameters.values())):
            self._store.bring(ref.digest)  # the worker asks no other place
        report(Progress(stage=stage.name, done=0, total=0))
        work = partial(
            self._worker(stage).call,
            stage,
            key=key,
            on_event=lambda event: self._event(stage.name, key, event),
            deadline=self._deadline,
            **parameters,
        )
        try:
            again = self._afresh.is_due(key)
            return carried_out(stage, key, parameters, self._store, work, again=again, beat=self._beat)
        except BaseException as error:
            if stage.name == "train":
                self._checkpoints.look(key, at_once=True)
            if isinstance(error, Interrupted) and time.monotonic() > self._deadline:
                raise self._late(f": {error.message}") from error
            raise

    def _beat(self) -> None:
        """Raise TimeLimit once there is no time left to wait."""
        if time.monotonic() > self._deadline:
            raise self._late(": another machine does the same training")

    def _say_device(self) -> None:
        """Log the device that was chosen, once, when a training begins."""
        for choice in self._prepared.defaults:
            if choice.field == "training.device" and not self._device_said:
                self._device_said = True
                log.info("training runs on the CPU: %s", choice.reason)

    def _late(self, where: str) -> TimeLimit:
        return TimeLimit(
            f"time limit of {self._spec.max_seconds:g} s reached{where}",
            hint=f"continue with: backprop resume {self._run_id}",
        )

    def _worker(self, stage: Stage[R]) -> Worker:
        return worker_process.worker(self._settings, self._spec.training, stage.name)

    def _event(self, stage: str, key: str, event: dict[str, Any]) -> None:
        if stage == "train":
            self._noted.journal.metrics(event["done"], event["values"])
            self._checkpoints.look(key)
        report(Progress(stage=stage, **event))


class Shared:
    """The executor of what runs ahead: it notes nothing."""

    def __init__(self, calls: StageCalls) -> None:
        self._calls = calls

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        return self._calls.result_ahead(stage, parameters)

    def ahead(self, work: Sequence[Callable[[Executor], object]]) -> None:
        """It runs ahead already."""

    def serve(self, file: GGUFRef, heldout: RowsRef) -> dict[str, str]:
        raise AssertionError("nothing goes live ahead of its run")
