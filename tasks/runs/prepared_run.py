"""The complete resolved spec of a run: committed before its first stage, read by `resume`. No Prefect."""

from typing import Any, Literal

from pydantic import Field, ValidationError

from backprop_core.errors import ArtifactDamaged, RefAmbiguous, RunUnknown
from backprop_core.lines.versions import Live
from backprop_core.models import base as bases
from backprop_core.schema.gate_report import Act
from backprop_core.schema.records import Record
from backprop_core.schema.refs import AdapterRef, BaseRef, Choice, ConverterRef, OwnTasks, RunId
from backprop_core.schema.specs import BenchSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of, part
from tasks.runs.recorded_spec import without, without_passwords
from tasks.runs.resolve_line import chosen_again
from tasks.runs.restored_runs import restore_run
from tasks.runs.sources import Source, keep


class SweepCell(Record):
    """One combination of settings that a sweep tries."""

    settings: dict[str, Any] = Field(description="The fields that are tried, with their values.")
    training: TrainSpec = Field(description="The complete training spec.")


class Prepared(Record):
    """The complete resolved spec of a run: read by `resume`, and the input of the cache keys."""

    format: Literal[1] = 1
    flow: str
    spec: RunSpec
    defaults: list[Choice] = Field(default_factory=list, description="Spec fields chosen automatically, with reasons.")
    base: BaseRef
    sources: list[Source]
    watch: list[Source]
    adapter: AdapterRef | None = Field(None, description="The merged adapter to export.")
    of: RunId | None = Field(None, description="The earlier run that made this adapter.")
    imported: bool = Field(False, description="Whether the adapter was imported from a directory.")
    live: Live | None = Field(None, description="The champion that a retrain continues; None: the line's first run.")
    converter: ConverterRef | None = Field(None, description="Writes the GGUF files if there is no writer here.")
    tasks: OwnTasks | None = Field(None, description="Custom lm-evaluation-harness tasks.")
    bench: BenchSpec | None = Field(None, description="What `bench` compares.")
    cells: list[SweepCell] = Field([], description="What a sweep tries; empty for other runs.")
    act: Act | None = Field(None, description="Manual promotion; not part of the digest.")
    fresh: bool = Field(False, description="Recompute every stage even if cached; not part of the digest.")

    @property
    def watched(self) -> list[str]:
        """Tasks that are only scored: those of the line, and those that this run brings. What is trained is none."""
        live = self.live.version if self.live else None
        watched = [*(live.watch if live else []), *(source.task for source in self.watch)]
        trained = {dataset.task for dataset in live.datasets} if live else set()
        trained |= {source.task for source in self.sources}
        return [task for task in dict.fromkeys(watched) if task not in trained]

    @property
    def asked(self) -> RunSpec:
        """The spec without what was chosen automatically, but for what a line keeps."""
        return RunSpec.model_validate(without(self.spec.model_dump(), chosen_again(self.defaults)))

    @property
    def forced(self) -> bool:
        """Whether a manual promotion overrides the gate."""
        return self.act is not None and self.act.forced

    def digest(self) -> str:
        """Digest of everything that determines the run's results: equal digests mean equal results."""
        inputs = [[part(source.data), part(source.heldout)] for source in self.sources + self.watch]
        parts = [self.flow, part(self.spec), part(self.base), inputs, part(self.adapter), part(self.live)]
        compared = [part(self.bench)] if self.bench else [part(cell.training) for cell in self.cells]
        return digest_of([*parts, *(each.digest for each in (self.converter, self.tasks) if each), *compared])


def begun(prepared: Prepared, run_id: str, store: Store) -> Prepared:
    """Keep a run's data and commit its spec before the first stage, for `resume`."""
    held = {name: keep(getattr(prepared, name), run_id, store) for name in ("sources", "watch")}
    prepared = prepared.model_copy(update=held)
    save(prepared, run_id, store)
    return prepared


def save(prepared: Prepared, run_id: str, store: Store) -> None:
    """Commit a run's resolved spec."""
    recorded = prepared.model_copy(update={"spec": without_passwords(prepared.spec)})
    write_atomic(store.layout.run(run_id).spec, recorded.model_dump_json())


def load(run_id: str, store: Store) -> Prepared:
    """The resolved spec of the run with this id, from MLflow if the store lacks it.

    Raises ArtifactDamaged if neither has it, or it cannot be read.
    """
    path = store.layout.run(run_id).spec
    if not path.is_file() and restore_run(run_id, store) is None:
        raise ArtifactDamaged(f"{path} is missing, and MLflow has no copy", hint="start the run again")
    try:
        prepared = Prepared.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactDamaged(
            f"{path} is not what was committed: {error.errors()[0]['msg']}", hint="start the run again"
        ) from error
    return prepared.model_copy(update={"base": bases.dated(prepared.base)})


def allow_inexact(prepared: Prepared) -> Prepared:
    """The same run, allowed to resume inexactly from its checkpoint."""
    training = prepared.spec.training.model_copy(update={"inexact_resume": True})
    return prepared.model_copy(update={"spec": prepared.spec.model_copy(update={"training": training})})


def full_run_id(prefix: str, store: Store) -> str:
    """The one run_id that starts with `prefix`; a run that only MLflow has is restored from it.

    Raises RunUnknown, RefAmbiguous.
    """
    found = sorted(run.run_id for run in store.layout.begun())
    matching = [name for name in found if name.startswith(prefix)]
    if not matching and (restored := restore_run(prefix, store)):
        return restored
    if not matching:
        raise unknown(prefix, store)
    if len(matching) > 1:
        raise RefAmbiguous(
            f"{prefix} is the start of {', '.join(name[:12] for name in matching)}", hint="use more digits"
        )
    return matching[0]


def unknown(prefix: str, store: Store) -> RunUnknown:
    """The error for a run that is neither in the store nor in MLflow."""
    return RunUnknown(f"no run {prefix} in {store.root}", hint="`backprop list-runs` lists the runs")


def is_warm(prepared: Prepared, store: Store) -> bool:
    """Whether the same work was finished before, so that everything is probably cached."""
    return store.layout.finished(prepared.digest()).is_file()


def mark_finished(prepared: Prepared, store: Store) -> None:
    """Record that all stages of this work are cached."""
    write_atomic(store.layout.finished(prepared.digest()), "")
