"""What a run would do: its body calls stages that read the rows, and looks every other stage up. Nothing is noted."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from backprop_core.data.row_sets import SEARCH_SHARE
from backprop_core.data.splits import HELDOUT_SHARE
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.runtime.settings import settings
from backprop_core.schema.gate_report import GateReport, Power
from backprop_core.schema.records import Record
from backprop_core.schema.refs import (
    AdapterRef,
    Answers,
    ArtifactRef,
    BackedOff,
    Choice,
    Contrast,
    Drift,
    Generated,
    GGUFRef,
    Harnessed,
    Perplexities,
    Ratings,
    RowsRef,
    Scores,
    Searched,
    Split,
    StageRecord,
    TrainResult,
)
from backprop_core.schema.specs import RunSpec, TrainSpec
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from backprop_core.store.key_changes import KeyChanges
from backprop_core.training import time_estimate
from backprop_core.training.defaults import Data
from backprop_core.training.vram_estimate import GIB, Setting, Shape, memory, micro_batch
from tasks.runs import disk_space, prepared_run, resolve, resolve_bench
from tasks.runs.flow_run import Run, Start, new_run_id
from tasks.runs.machine_speed import speed_of
from tasks.runs.outcome import Notes
from tasks.runs.resolve_defaults import data_in
from tasks.runs.stage_calls import Executor
from tasks.stages.cache_policy import Records, UnfitRecord, is_recorded, read_result
from tasks.stages.parent_place import ParentPlace

R = TypeVar("R", bound=BaseModel)


class PlannedRows(Record):
    """What a run would train of a dataset, and what would score."""

    name: str
    task: str
    read: int = Field(description="Rows in the source.")
    train: int
    heldout: int = Field(description="Rows of its task that score.")
    dropped: dict[str, int] = Field(description="Rows that nothing is made of, by reason.")
    not_trained: dict[str, int] = Field(description="Good rows that are not trained, by reason.")
    tokens: int | None = Field(description="That one epoch reads, about; None where they could not be counted.")
    pairs: int = Field(0, description="Rows to train that have a chosen and a rejected answer.")
    ratings: int = Field(0, description="Rows to train whose answer was rated good or bad.")
    heldout_preferences: int = Field(0, description="Preferences that score.")


class Plan(Record):
    """The rows and the stages of a run, what was chosen for it, and what it would take, in GiB."""

    rows: list[PlannedRows] = Field(default_factory=list, description="By dataset, in the order of the runs.")
    defaults: list[Choice] = Field(default_factory=list, description="What of the spec was chosen, and why.")
    cells: list[str] = Field(default_factory=list, description="Of a comparison: settings, orders and seeds.")
    stages: list[StageRecord] = Field(description="In order; those not cached would run.")
    power: Power | None = Field(None, description="What the held-out rows can show; None for a run without a gate.")
    device: str
    vram: float | None = Field(description="At the peak of a step; None on the CPU, or for a model not known by size.")
    vram_free: float | None
    seconds: float | None = Field(description="Of training and scoring, about; None where no speed could be measured.")
    disk: float | None = Field(description="Of what is written, about; None for a model not known by size.")
    disk_free: float


class Beside(Store):
    """What is in a store, and in a temporary directory of its own what a plan makes of rows."""

    def __init__(self, below: Store) -> None:
        super().__init__(below.scratch("plan"))
        self._below = below

    def local(self, ref: ArtifactRef) -> Path:
        is_here = self.layout.artifact(ref.digest).is_dir()
        return super().local(ref) if is_here else self._below.local(ref)


class PlanNotes(Notes):
    """Of what the body notes, what a plan says."""

    rows: Split | None = None
    power: Power | None = None

    def __init__(self) -> None:
        self.cells: list[str] = []

    def splits(self, rows: Split) -> None:
        self.rows = rows

    def can_show(self, power: Power | None) -> None:
        self.power = power

    @contextmanager
    def cell(self, number: int, name: str, parameters: dict[str, str]) -> Iterator[None]:
        self.cells.append(name)
        yield


class Lookup:
    """Calls no model: rows are read and split, every other stage that is not in the cache gets a stand-in."""

    def __init__(self, prepared: prepared_run.Prepared, store: Store) -> None:
        self.stages: list[StageRecord] = []
        self.files: list[str] = []  # kinds of GGUF files to be written
        self._prepared, self._store, self._beside = prepared, store, Beside(store)
        self._changes = KeyChanges(store)

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        key = stage_key(stage.name, parameters)
        found: R | None = None if self._prepared.fresh else recorded(self._store, key)
        cached = found is not None or key in [stage.key for stage in self.stages]
        why = [] if cached else self._why(stage, key, parameters)
        self.stages.append(StageRecord(stage=stage.name, key=key, cached=cached, seconds=0, digest=None, changed=why))
        if not cached:
            written = disk_space.kind_of(stage.name, parameters)
            disk_space.check(self._prepared.spec, self._store.root, stage=stage.name, kind=written)
            self.files += [written] if written else []
        if found is None and stage.planned:
            found = stage.carry_out(parameters, ParentPlace(self._beside, key, stage.name))
        self._changes.learn(stage.name, key, parameters, found)
        return found or stand_in(stage.result, key)

    def _why(self, stage: Stage[R], key: str, parameters: dict[str, Any]) -> list[str]:
        return ["--fresh"] if self._prepared.fresh else self._changes.why(stage.name, key, parameters)

    def ahead(self, work: Sequence[Callable[[Executor], object]]) -> None:
        """Nothing is computed."""

    def serve(self, file: GGUFRef, heldout: RowsRef) -> dict[str, str]:
        return {}


def recorded(store: Store, key: str) -> Any:
    """What the cache has under this key; None if nothing, or nothing sound."""
    if not is_recorded(store, key):
        return None
    try:
        record = json.loads(Records().read_path(key))
        return read_result(Path(record["storage_key"]).read_bytes())
    except (UnfitRecord, FileNotFoundError):
        return None


def stand_in(kind: type[R], key: str) -> R:
    """A result named by its stage's key, so that nothing made of it is in the cache either."""
    made: Any
    if issubclass(kind, TrainResult):
        adapter = AdapterRef(digest=key, kind="tuned")
        made = TrainResult(adapter=adapter, steps=0, tokens=0, train_loss=0, seconds=0)
    elif issubclass(kind, Drift):
        made = Drift(a=0, b=0, weight=0)
    elif issubclass(kind, Searched):
        made = Searched(weight=0, tried={})
    elif issubclass(kind, BackedOff):
        made = BackedOff(adapter=AdapterRef(digest=key, kind="merged"), share=1, tried={})
    elif issubclass(kind, Harnessed):
        made = Harnessed(scores={})
    elif issubclass(kind, Perplexities):
        made = Perplexities(digest=key, rows=0)
    elif issubclass(kind, Scores):
        made = Scores(digest=key, rows=1, tokens=0, loss=0, token_accuracy=0, exact_match=0)
    elif issubclass(kind, Ratings):
        made = Ratings(digest=key, metric="", rows=1, score=0)
    elif issubclass(kind, Answers):
        made = Answers(answers=[Generated(text=key, tokens=0, stopped=True)])
    elif issubclass(kind, Contrast):
        made = Contrast(best=0, cells=[])
    elif issubclass(kind, GateReport):
        made = GateReport(
            accepted=True, reason="", against="base", metric="", average=0, rival_average=0, base_average=0, tasks=[]
        )
    else:
        made = kind.model_construct(digest=key, rows=1)
    found: R = made
    return found


def plan(flow: str, spec: RunSpec, body: Callable[[Run], object], *, fresh: bool) -> Plan:
    """What `body` would do with this spec. Raises what `prepare` raises."""
    return planned(lambda store: resolve.prepare(flow, spec, store), body, fresh=fresh)


def planned(start: Start, body: Callable[[Run], object], *, fresh: bool) -> Plan:
    """What `body` would do with what `start` resolves. Raises what `start` raises."""
    store = Store(settings().store_path)
    try:
        prepared = start(store).model_copy(update={"fresh": fresh})
        lookup, notes = Lookup(prepared, store), PlanNotes()
        body(Run(new_run_id(), prepared, store, lookup, notes))
        training, shape = prepared.spec.training, disk_space.known_shape(prepared.spec.model)
        base, _ = bases.locate(prepared.base.name, prepared.base.revision)
        inputs = zip(prepared.sources, prepared.spec.datasets, strict=bool(prepared.sources))
        measured = [data_in(source.data, dataset, base, store) for source, dataset in inputs]
        if prepared.bench and prepared.live:
            measured = [*resolve_bench.sizes(prepared.live.version, base, store)]
        card = devices.memory() if training.device == "cuda" else None
        return Plan(
            rows=rows_of(notes.rows, measured, prepared.spec),
            defaults=prepared.defaults,
            cells=notes.cells,
            stages=lookup.stages,
            power=notes.power,
            device=training.device,
            vram=gib(vram(shape, training)) if shape and training.device == "cuda" else None,
            vram_free=gib(card.free) if card else None,
            seconds=seconds(shape, prepared, lookup, measured, store) if shape else None,
            disk=gib(disk(shape, training, lookup)) if shape else None,
            disk_free=gib(shutil.disk_usage(store.root).free),
        )
    finally:
        store.close()


def rows_of(rows: Split | None, measured: list[Data | None], spec: RunSpec) -> list[PlannedRows]:
    """What of each dataset would be trained, and score."""
    if rows is None:
        return []
    if len(measured) != len(rows.datasets):  # another base accepts no row of one
        measured = [None] * len(rows.datasets)
    most = spec.evaluation.heldout_max
    scored = {task: min(one.rows, most) for task, one in rows.heldout.items()}
    return [
        PlannedRows(
            name=found.name,
            task=found.task,
            read=found.read,
            train=found.train.rows,
            heldout=scored.get(found.task, 0),
            dropped=found.dropped,
            not_trained=found.not_trained,
            tokens=round(data.tokens / data.examples * found.train.rows) if data else None,
            pairs=found.pairs,
            ratings=found.ratings,
            heldout_preferences=scored.get(found.preference_task or "", 0),
        )
        for found, data in zip(rows.datasets, measured, strict=True)
    ]


def seconds(
    shape: Shape, prepared: prepared_run.Prepared, lookup: Lookup, measured: list[Data | None], store: Store
) -> float | None:
    """What the training and scoring that are left take on this machine, about; one dataset counts as another."""
    spec, todo = prepared.spec, [stage.stage for stage in lookup.stages if not stage.cached]
    trainings, scorings = todo.count("train"), todo.count("evaluate")
    if not trainings + scorings:
        return 0.0
    data = [one for one in measured if one]
    speed = speed_of(spec.training.device, store)
    if not data or speed is None:
        return None
    flops = [
        trainings * time_estimate.training_flops(shape.parameters, with_replay(one, prepared), spec.training)
        + trainings * time_estimate.stopping_flops(shape.parameters, one, spec.training, choosing_rows(one, spec))
        + scorings * time_estimate.scoring_flops(shape.parameters, one, spec.training, heldout_rows(one, spec))
        for one in data
    ]
    return float(f"{time_estimate.seconds(sum(flops) / len(flops), speed):.3g}")


def with_replay(data: Data, prepared: prepared_run.Prepared) -> Data:
    """A dataset with the rows that an average run of these replays, about: as long as its own."""
    training, line = prepared.spec.training, prepared.live.version.datasets if prepared.live else []
    own = [source.task for source in prepared.sources]
    before = [[dataset.task for dataset in line] + own[:index] for index in range(len(own))]
    share = training.replay * sum(map(len, before)) * data.examples
    earlier = max(share, training.replay_rows * sum(len(set(tasks)) for tasks in before))
    rows = earlier / len(own) + training.replay_general
    more = 1 + rows / data.examples
    sizes = {name: round(more * getattr(data, name)) for name in ("examples", "tokens", "label_tokens")}
    return data.model_copy(update=sizes)


def heldout_rows(data: Data, spec: RunSpec) -> int:
    """Rows that one cell of the matrix scores, about."""
    return min(data.examples // (HELDOUT_SHARE - 1), spec.evaluation.heldout_max)


def choosing_rows(data: Data, spec: RunSpec) -> int:
    """Rows of a task that choose the best step, about."""
    return heldout_rows(data, spec) // SEARCH_SHARE


def vram(shape: Shape, training: TrainSpec) -> int:
    """Bytes at the peak of a step, as the run begins."""
    assert training.precision != "auto", "resolved by `prepare`"
    checkpointing = training.gradient_checkpointing == "on"
    setting = Setting(
        precision=training.precision,
        checkpointing=checkpointing,
        lora=training.lora,
        optimizer=training.optimizer,
    )
    return memory(shape, setting, micro_batch(training)).total


def disk(shape: Shape, training: TrainSpec, lookup: Lookup) -> int:
    """Bytes of the adapters and GGUF files that would be written, and of one run's checkpoints."""
    todo = [stage.stage for stage in lookup.stages if not stage.cached]
    adapters = disk_space.of_adapters(shape, training, sum(map(todo.count, ("train", "merge", "back_off"))))
    checkpoints = disk_space.of_checkpoints(shape, training) if "train" in todo else 0
    return adapters + checkpoints + disk_space.of_files(shape, lookup.files)


def gib(size: int) -> float:
    return round(size / GIB, 3)
