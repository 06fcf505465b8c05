"""Calls the stages of a flow run as Prefect tasks: from the cache, in this process, or in the worker."""

import logging
import math
import shutil
import time
from typing import Any, Protocol, TypeVar

from prefect import Task
from prefect.logging import get_run_logger
from pydantic import BaseModel

from backprop_core.errors import Interrupted, TimeLimit
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.refs import GGUFRef, RowsRef, StageRecord
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digests_in, stage_key
from backprop_core.store.key_changes import KeyChanges
from backprop_core.store.leases import Lease
from backprop_core.store.locks import held
from backprop_core.worker.client import Worker
from tasks.runs import disk_space, worker_process
from tasks.runs.outcome import Outcome
from tasks.runs.prepared_run import Prepared
from tasks.runs.progress import Progress, report
from tasks.runs.recomputed import Afresh
from tasks.runs.results import digest_in
from tasks.stages.cache_policy import is_recorded
from tasks.stages.labels import Labels, outcome
from tasks.stages.ollama import canary, register
from tasks.stages.parent_place import ParentPlace
from tasks.stages.stage_tasks import stage_task

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger(__name__)


class Executor(Protocol):
    """What calls the stages of a flow."""

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        """The result of a stage."""

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
        limit = self._spec.max_seconds if flow_info(prepared.flow).trains else None
        self._deadline = time.monotonic() + limit if limit else math.inf

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        key = stage_key(stage.name, parameters)
        self._lease.add(key)
        self._wait_for_device(stage, key)
        begin, again = time.monotonic(), self._afresh.is_due(key)
        why = self._why(stage, key, parameters, again=again)
        if again or not is_recorded(self._store, key):
            self._check_limits(stage, parameters)
        if again and stage.name == "train":
            self._forget_checkpoints(key)
        self._afresh.begin(key)
        label = self._labels.name(stage.name, parameters)
        state = self._task(stage, label, again)(**parameters, return_state=True)
        result: R = state.result()
        self._keep(key, result)
        self._labels.learn(parameters, result)
        self._changes.learn(stage.name, key, parameters, result)
        self._changes.note(stage.name, key, parameters)
        cached, seconds = state.name == "Cached", round(time.monotonic() - begin, 3)
        self._noted.staged(
            StageRecord(
                stage=stage.name,
                key=key,
                cached=cached,
                seconds=seconds,
                digest=digest_in(result),
                changed=[] if cached else why,
            )
        )
        took = "from the cache" if cached else f"{seconds:.1f} s"
        get_run_logger().info("%s (%s)", ": ".join(filter(None, [label, outcome(result)])), took)
        return result

    def _why(self, stage: Stage[R], key: str, parameters: dict[str, Any], *, again: bool) -> list[str]:
        """Why a stage is not taken from the cache."""
        if again:
            return ["--fresh"]
        return [] if is_recorded(self._store, key) else self._changes.why(stage.name, key, parameters)

    def serve(self, file: GGUFRef, heldout: RowsRef) -> dict[str, str]:
        export, prompt = self._spec.export, canary(heldout, self._store)
        path = self._store.layout.artifact(file.digest) / "model.gguf"
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

    def _task(self, stage: Stage[R], label: str, again: bool) -> Task[..., R]:
        return stage_task(
            stage,
            lambda given: self._carry_out(stage, given),
            refresh_cache=again,
            result_storage=self._store.layout.cache_results,
            task_run_name=label,
        )

    def _keep(self, key: str, result: BaseModel) -> None:
        """Keep what a stage made, now that Prefect has noted it; its checkpoints are needed no more."""
        self._afresh.end(key)
        for name in digests_in(result.model_dump_json()):
            self._lease.add(name)
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
        report(Progress(stage=stage.name, done=0, total=0))
        try:
            return self._worker(stage).call(
                stage,
                key=key,
                on_event=lambda event: self._event(stage.name, event),
                deadline=self._deadline,
                **parameters,
            )
        except Interrupted as error:
            if time.monotonic() > self._deadline:
                raise self._late(f": {error.message}") from error
            raise

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

    def _event(self, stage: str, event: dict[str, Any]) -> None:
        if stage == "train":
            self._noted.journal.metrics(event["done"], event["values"])
        report(Progress(stage=stage, **event))
