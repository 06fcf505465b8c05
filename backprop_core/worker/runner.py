"""Runs stages in the worker. A result depends on the job alone: a new and a used worker give the same bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from backprop_core.models import base as bases
from backprop_core.models.loading import LoadedBase, load, with_tokenizer_of
from backprop_core.schema.field_types import Precision
from backprop_core.schema.refs import AdapterRef, BaseRef
from backprop_core.stages import every
from backprop_core.store.artifacts import Store
from backprop_core.training.distributed import ALONE, Ranks
from backprop_core.training.stages import follow

Emit = Callable[[dict[str, Any]], None]


class Runner:
    """Runs the stage that a job names, and keeps the base in memory between jobs."""

    def __init__(self, store: Store, *, should_stop: Callable[[], bool], ranks: Ranks = ALONE) -> None:
        self._store = store
        self._should_stop = should_stop
        self._ranks = ranks
        self._loaded: tuple[object, LoadedBase] | None = None

    def run(self, stage: str, key: str, parameters: dict[str, Any], emit: Emit) -> BaseModel:
        """Run a stage with these parameters, which are JSON; returns its result."""
        declared = every()[stage]
        job = declared.job.model_validate(parameters)
        result: BaseModel = declared.carry_out({name: getattr(job, name) for name in parameters}, self._at(key, emit))
        return result

    def follow(self) -> None:
        """Take part in the next training of the leading process."""
        follow(self._at("", lambda event: None))

    def _at(self, key: str, emit: Emit) -> "Place":
        return Place(self._store, key, emit, self._should_stop, self._ranks, self.base)

    def base(self, ref: BaseRef, precision: Precision, device: str) -> LoadedBase:
        """The base in memory; loads it first if another one, or none, is there."""
        wanted = (ref.digest, precision, device)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # let go of the old one first
            self._loaded = wanted, load(bases.local(ref, self._store), precision=precision, device=device)
        return self._loaded[1]


@dataclass(frozen=True)
class Place:
    """What a job may use beside its parameters: see `backprop_core.stages.WorkerPlace`."""

    store: Store
    key: str
    emit: Emit
    should_stop: Callable[[], bool]
    ranks: Ranks
    base: Callable[[BaseRef, Precision, str], LoadedBase]

    def progress(self, done: int, total: int) -> None:
        self.emit({"done": done, "total": total})

    def model(self, base: BaseRef, adapter: AdapterRef | None, precision: Precision, device: str) -> LoadedBase:
        return with_tokenizer_of(self.base(base, precision, device), adapter, self.store)
