"""The registry of stages. A stage is declared once: one typed function in the `stages.py` of its room.

    @stage(version=1, runs_in="worker")
    def evaluate(base: BaseRef, adapter: AdapterRef | None, heldout: RowsRef, *, at: Workplace) -> Scores: ...

Its name, parameters and return type are the cache key, the worker's job, the Prefect task, the row of `--plan` and the
table in docs/reference.md. A `stages.py` imports nothing heavy: the parent process reads signatures there. What needs
torch is imported in the body, which runs in the worker.
"""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, get_type_hints

from pydantic import BaseModel, create_model

import backprop_core
from backprop_core.schema.records import Record

if TYPE_CHECKING:
    from backprop_core.models.loading import LoadedBase
    from backprop_core.schema.field_types import Precision
    from backprop_core.schema.refs import AdapterRef, BaseRef
    from backprop_core.store.artifacts import Store
    from backprop_core.training.distributed import Ranks

R = TypeVar("R", bound=BaseModel)
RunsIn = Literal["parent", "worker"]


class Workplace(Protocol):
    """What a stage may use beside its parameters. Nothing here decides its result."""

    @property
    def store(self) -> "Store":
        """Where artifacts are read and committed."""

    @property
    def key(self) -> str:
        """The cache key of what is made."""

    def progress(self, done: int, total: int) -> None:
        """Report how much is done, of how much."""


class WorkerPlace(Workplace, Protocol):
    """What a stage in the worker may use as well."""

    @property
    def ranks(self) -> "Ranks":
        """The processes that train together."""

    def base(self, ref: "BaseRef", precision: "Precision", device: str) -> "LoadedBase":
        """The base in memory; loads it first if another one, or none, is there."""

    def model(self, base: "BaseRef", adapter: "AdapterRef | None", precision: "Precision", device: str) -> "LoadedBase":
        """The base in memory, with the tokenizer that came with the adapter, if one did."""

    def emit(self, event: dict[str, Any]) -> None:
        """Send an event to the parent."""

    def should_stop(self) -> bool:
        """Whether the parent has asked the job to stop."""


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One declared stage. `function` takes the parameters and, as keyword, `at`."""

    function: Callable[..., R]
    version: int
    runs_in: RunsIn
    planned: bool

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def help(self) -> str:
        """The first line of its docstring."""
        return (self.function.__doc__ or "").partition("\n")[0]

    @cached_property
    def hints(self) -> dict[str, Any]:
        hints = get_type_hints(self.function)
        del hints["at"]
        return hints

    @cached_property
    def result(self) -> type[R]:
        """The type that it returns."""
        kind: type[R] = self.hints["return"]
        return kind

    @cached_property
    def signature(self) -> inspect.Signature:
        """Its parameters, each by name, without `at`."""
        own = inspect.signature(self.function).parameters.values()
        named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name != "at"]
        return inspect.Signature(named, return_annotation=self.result)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the parameters that came later: at them, they are no part of the cache key."""
        named = self.signature.parameters.values()
        return {one.name: one.default for one in named if one.default is not one.empty}

    @cached_property
    def job(self) -> type[Any]:
        """The parameters as a record: what a worker is sent, as JSON."""
        defaults = {name: ... for name in self.signature.parameters} | self.defaults
        fields: dict[str, Any] = {name: (self.hints[name], default) for name, default in defaults.items()}
        return create_model(f"{self.name}_job", __base__=Record, **fields)

    def carry_out(self, parameters: Mapping[str, Any], at: Workplace) -> R:
        """Do it, here and now."""
        return self.function(**parameters, at=at)


_declared: dict[str, Stage[Any]] = {}  # filled by the decorator when a room's stages.py is imported


def stage(*, version: int, runs_in: RunsIn, planned: bool = False) -> Callable[[Callable[..., R]], Stage[R]]:
    """Declare a function a stage. Raise `version` when its result changes; a golden test fails otherwise.

    `planned`: it needs no model, so `--plan` does it too, and what follows is looked up under its true key.
    """

    def declare(function: Callable[..., R]) -> Stage[R]:
        declared = Stage(function, version, runs_in, planned)
        assert declared.name not in _declared, f"two stages {declared.name}"
        _declared[declared.name] = declared
        return declared

    return declare


@cache
def every() -> Mapping[str, Stage[Any]]:
    """All stages by name, from the `stages.py` of each room."""
    for room in pkgutil.iter_modules(backprop_core.__path__, "backprop_core."):
        if room.ispkg and importlib.util.find_spec(f"{room.name}.stages"):
            importlib.import_module(f"{room.name}.stages")
    return dict(sorted(_declared.items()))


def versions() -> dict[str, int]:
    """The version of each stage, by name."""
    return {name: declared.version for name, declared in every().items()}
