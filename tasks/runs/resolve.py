"""Resolves a run's spec before anything is computed: base, data, line, adapter, export. No Prefect."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from backprop_core.errors import ArtifactDamaged, ConfigInvalid, LineConflict, NotGated, RefAmbiguous, RunUnknown
from backprop_core.lines.versions import Lines, LineVersion, Live
from backprop_core.models import base as bases
from backprop_core.runtime.settings import settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import Act
from backprop_core.schema.records import Record
from backprop_core.schema.refs import AdapterRef, BaseRef, Choice, ConverterRef, Located, OwnTasks, RunId, RunResult
from backprop_core.schema.specs import (
    ApprovalSpec,
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    LoraSpec,
    MergeSpec,
    ModelSpec,
    PublishSpec,
    RunSpec,
)
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of, part
from tasks.runs.adapter_directory import adapter_in, holds_adapter, is_path
from tasks.runs.preflight_checks import check_export, check_metric, check_repo, check_training, harness_tasks
from tasks.runs.recorded_spec import without_passwords
from tasks.runs.resolve_defaults import decide
from tasks.runs.sources import Source, downloads, keep, refuse_collisions, sources
from tasks.runs.worker_process import interpreter

if TYPE_CHECKING:
    from backprop_core.publishing.release import Release


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
    def forced(self) -> bool:
        """Whether a manual promotion overrides the gate."""
        return self.act is not None and self.act.forced

    def digest(self) -> str:
        """Digest of everything that determines the run's results: equal digests mean equal results."""
        inputs = [[part(source.data), part(source.heldout)] for source in self.sources + self.watch]
        parts = [self.flow, part(self.spec), part(self.base), inputs, part(self.adapter), part(self.live)]
        return digest_of([*parts, *(each.digest for each in (self.converter, self.tasks) if each)])


def prepare(flow: str, spec: RunSpec, store: Store) -> Prepared:
    """Find the base and the data, check the configuration, and fill in defaults.

    Raises the coded errors of base, data, export and lines, of `tasks.runs.resolve_defaults`, and UnslothNotAvailable.
    """
    check_metric(spec.evaluation)
    interpreter(settings(), spec.training.backend)
    live = Lines(store).live(spec.line) if flow == "retrain" else None
    if flow != "retrain" and spec.publish != PublishSpec():
        raise ConfigInvalid(f"{flow} publishes nothing", hint="promote its run to a line, or retrain a line")
    if flow != "retrain" and (spec.approval != ApprovalSpec() or spec.notify):
        raise ConfigInvalid(f"{flow} does not release anything", hint="remove approval and notify")
    if live:
        spec = continued(spec, live)
        spec = still_published(spec, store)
    own = live.version.base if live and spec.model == ModelSpec() else None
    base = bases.dated(own) if own else bases.resolve(spec.model, store)
    Lines(store).check_base(spec.line, base)
    converter = check_export(base, spec, store)
    task, scratch = spec.line if flow == "retrain" else None, downloads(store)
    refuse_collisions([*([] if task else spec.datasets), *spec.evaluation.watch])
    found = sources(spec.datasets, scratch, task=task)
    watched = sources(spec.evaluation.watch, scratch)
    spec, chosen = decide(spec, base, [source.data for source in found], store, later=live is not None)
    continues = live is not None or len(spec.datasets) > 1
    check_training(spec.training, bases.local(base, store), spec.export, continues=continues)
    return Prepared(
        flow=flow,
        spec=spec,
        defaults=chosen,
        base=base,
        sources=found,
        watch=watched,
        live=live,
        converter=converter,
        tasks=harness_tasks(spec.evaluation),
    )


def still_published(spec: RunSpec, store: Store) -> RunSpec:
    """Publish to the same targets as the line's champion, unless others are configured."""
    if spec.publish != PublishSpec() or (known := last_release(spec.line, store)) is None:
        return spec
    export = spec.export if spec.export.quantizations else known.export
    return spec.model_copy(update={"publish": known.publish, "export": export})


def continued(spec: RunSpec, live: Live) -> RunSpec:
    """Use the line's LoRA shape and merge strategy. Raises LineConflict if the spec asks for others.

    A field left at its default asks for nothing.
    """
    version, merge, default = live.version, spec.merge, MergeSpec()
    for name, asked, usual, own in [
        ("training.lora", like(version.lora, spec.training.lora), version.lora, version.lora),
        ("merge.strategy", merge.strategy, default.strategy, version.merge.strategy),
        ("merge.merge_a", merge.merge_a, default.merge_a, version.merge.merge_a),
        ("merge.lambda", merge.weight, default.weight, version.merge.weight),
    ]:
        if asked not in (usual, own):
            raise LineConflict(
                f"line {spec.line} has another {name} than {asked}: {own}", hint="remove it, or start another line"
            )
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(update={"lora": version.lora}),
            "merge": version.merge,
        }
    )


def published(ref: str, publish: PublishSpec, export: ExportSpec, store: Store) -> Prepared:
    """Resolve an earlier run's result, to push it to the Hub."""
    check_repo(publish.repo or "")
    earlier = again("publish", ref, export, store)
    if earlier.imported:
        raise RunUnknown(
            f"{ref} has no record to fill a model card from", hint="push the result of a run of this store"
        )
    spec = earlier.spec.model_copy(update={"publish": publish})
    return earlier.model_copy(update={"spec": spec})


def to_release(
    flow: str, line: str, number: int | None, publish: PublishSpec, export: ExportSpec, act: Act, store: Store
) -> Prepared:
    """Resolve a version of a line (None: the champion), to release it.

    Fields of `publish` and `export` that are not set are those of the champion's release. Raises RunUnknown,
    ConfigInvalid without a target, or NotGated if the version did not pass the gate and `act` does not force it.
    """
    lines = Lines(store)
    known = last_release(line, store)
    live = Live(number=number, version=lines.version(line, number)) if number else lines.live(line)
    if live is None:
        raise RunUnknown(f"line {line} has no champion", hint="`backprop lines` lists all lines")
    earlier = load(live.version.run_id, store)
    spec = earlier.spec.model_copy(
        update={"line": line, "publish": publish.over(known.publish), "export": export.over(known.export)}
        if known
        else {"line": line, "publish": publish, "export": export}
    )
    if flow == "release" and not (spec.publish.ollama or spec.publish.repo):
        raise ConfigInvalid(f"line {line} has no publish target", hint="set --ollama NAME or --repo OWNER/NAME")
    act = act.model_copy(update={"forced": is_forced(flow, line, live, act, store)})
    changes = {"flow": flow, "spec": spec, "live": live, "converter": check_export(live.version.base, spec, store)}
    of, adapter = live.version.run_id, live.version.merged
    return earlier.model_copy(update={**changes, "adapter": adapter, "of": of, "act": act})


def is_forced(flow: str, line: str, live: Live, act: Act, store: Store) -> bool:
    """Whether `act` must force this version past the gate. Raises NotGated if it must, but does not.

    A version that passed the gate, or was forced past it, once may go live again without force.
    """
    version, moves = live.version, Lines(store).moves(line)
    path = store.layout.run(version.run_id).result
    report = version.gate or (RunResult.model_validate_json(path.read_bytes()).gate if path.is_file() else None)
    if (report and report.accepted) or any(move.number == live.number and move.act.forced for move in moves):
        return False
    if not act.forced:
        said = f"was rejected by the gate: {report.reason}" if report else "was never checked by the gate"
        to = f" --to {live.number}" if flow == "rollback" else ""
        raise NotGated(
            f"version {live.number} of line {line} {said}",
            hint=f"to release it anyway: backprop {flow} {line}{to} --force --reason TEXT",
        )
    return True


def to_rollback(line: str, number: int | None, act: Act, store: Store) -> Prepared:
    """Resolve a rollback to a version, by default the one before the champion. Raises RunUnknown and NotGated."""
    live = Lines(store).live(line)
    before = number or ((live.version.parent or live.number - 1) if live else 0)
    if not before:
        raise RunUnknown(f"line {line} has no version before its champion", hint="`backprop lines` lists all lines")
    return to_release("rollback", line, before, PublishSpec(), ExportSpec(), act, store)


def last_release(line: str, store: Store) -> "Release | None":
    """The release of a line's champion; None if it was never published."""
    from backprop_core.publishing.release import released

    champion = Lines(store).champion(line)
    return released(line, champion, store) if champion else None


def like(own: LoraSpec, asked: LoraSpec) -> LoraSpec:
    """The requested spec, with the line's values in place of defaults."""
    fields = LoraSpec.model_fields.items()
    open_ = [name for name, field in fields if getattr(asked, name) == field.default]
    return asked.model_copy(update={name: getattr(own, name) for name in open_})


def again(flow: str, ref: str, export: ExportSpec, store: Store, *, model: str | None = None) -> Prepared:
    """Resolve an earlier run's adapter, to export it."""
    earlier = made(ref, store, model=model)
    spec = earlier.spec.model_copy(update={"export": export})
    converter = check_export(earlier.base, spec, store, adapter=earlier.adapter)
    live = earlier.live if earlier.flow == "retrain" else None  # it has the champion's held-out rows
    return earlier.model_copy(update={"flow": flow, "spec": spec, "live": live, "converter": converter})


def made(ref: str, store: Store, *, model: str | None = None) -> Prepared:
    """The run behind a reference, with the merged adapter that it made.

    `ref` is a run_id or its start, a line (its champion), `line@version`, or a directory with a PEFT adapter. The base
    of a directory is `model`, or the one that its config names.

    Raises RunUnknown, RefAmbiguous for a name that could be two things, ConfigInvalid, and what `adapter_in` raises.
    """
    line, _, version = ref.partition("@")
    if is_path(ref) or (holds_adapter(ref) and not is_known(line, store)):
        return of_directory(ref, model, store)
    if holds_adapter(ref):
        raise RefAmbiguous(f"{ref} is both a directory with an adapter and a line or run", hint=f"write ./{ref}")
    if model:
        raise ConfigInvalid(f"{ref} already has a base", hint="remove --model")
    if line not in Lines(store).names():
        run_id = full_run_id(ref, store)
        return by(run_id, AdapterRef(digest=merged_of(run_id, store).digest, kind="merged"), store)
    if not version and any(store.layout.begun(line)):
        raise RefAmbiguous(f"{ref} is both a line and the start of a run_id", hint="use more digits, or line@version")
    found = version_of(line, version, store)
    return by(found.run_id, found.merged, store)


def is_known(name: str, store: Store) -> bool:
    """Whether a line has this name, or a run_id starts with it."""
    return name in Lines(store).names() or any(store.layout.begun(name))


def of_directory(ref: str, model: str | None, store: Store) -> Prepared:
    """Resolve an imported adapter, with rows of everyday chat to check its files."""
    spec, base, adapter = adapter_in(ref, model, store)
    watch = sources(spec.evaluation.watch, downloads(store))
    return Prepared(flow="export", spec=spec, base=base, sources=[], watch=watch, adapter=adapter, imported=True)


def by(run_id: str, adapter: AdapterRef, store: Store) -> Prepared:
    """The resolved spec of the run that made an adapter. Raises RunUnknown for a run that only scored one."""
    earlier = load(run_id, store)
    if flow_info(earlier.flow).only_scores:
        raise RunUnknown(f"run {run_id} only scored an adapter", hint="use the run that made the adapter")
    of = run_id if earlier.flow == "promote" else earlier.of or run_id
    return earlier.model_copy(update={"adapter": adapter, "of": of, "act": None})


def version_of(line: str, version: str, store: Store) -> LineVersion:
    """A version of a line by its number, by default the champion. Raises RunUnknown."""
    if version:
        if not version.isdecimal():
            raise RunUnknown(f"{version} is not a version of line {line}", hint=f"write {line}@1")
        return Lines(store).version(line, int(version))
    live = Lines(store).live(line)
    if live is None:
        raise RunUnknown(f"line {line} has no champion", hint=f"name a version: {line}@1")
    return live.version


def evaluated(
    ref: str, data: Sequence[DatasetSpec], changes: EvaluationSpec, store: Store, *, model: str | None = None
) -> Prepared:
    """Resolve an earlier run's adapter, to score it on its own held-out sets, or on all rows of `data`.

    `changes` override the run's own evaluation spec. Raises ConfigInvalid and what `made` and `source` raise.
    """
    earlier = made(ref, store, model=model)
    if earlier.imported and not data:
        raise ConfigInvalid(f"{ref} has no held-out rows of its own", hint="set rows to score with --data FILE")
    evaluation = EvaluationSpec.model_validate(
        earlier.spec.evaluation.model_dump() | changes.model_dump(exclude_unset=True)
    )
    check_metric(evaluation)
    live = earlier.live if earlier.flow == "retrain" and not data else None
    refuse_collisions(data)
    own = {"sources": [], "watch": sources(data, downloads(store))} if data else {}
    watch = list(data) or evaluation.watch
    spec = earlier.spec.model_copy(update={"evaluation": evaluation.model_copy(update={"watch": watch})})
    asked = {"flow": "evaluate", "spec": spec, "live": live, "tasks": harness_tasks(evaluation)}
    return earlier.model_copy(update=asked | own)


def to_compare(line: str, dataset: DatasetSpec, store: Store) -> Prepared:
    """Resolve a line's champion, to score it on rows of `dataset` that it has not learned.

    Raises RunUnknown if the line has none, and what `source` raises.
    """
    live = Lines(store).live(line)
    if live is None:
        raise RunUnknown(f"line {line} has no champion", hint="retrain it once; `backprop lines` lists what there is")
    earlier = by(live.version.run_id, live.version.merged, store)
    evaluation = earlier.spec.evaluation.model_copy(update={"watch": []})
    spec = earlier.spec.model_copy(update={"line": line, "datasets": [dataset], "evaluation": evaluation})
    own = {"sources": sources([dataset], downloads(store), task=line), "watch": []}
    return earlier.model_copy(update={"flow": "drift", "spec": spec, "live": live, **own})


def promoted(ref: str, line: str, act: Act, store: Store) -> Prepared:
    """Resolve an earlier run, to promote it to a version of a line; an existing line keeps its own gate.

    Raises RunUnknown, RefAmbiguous, or LineConflict if the line has another base or another LoRA shape.
    """
    run_id = full_run_id(ref, store)
    earlier = load(run_id, store)
    if not flow_info(earlier.flow).makes_candidates:
        raise RunUnknown(f"{ref} is a {earlier.flow} run", hint="promote a run of `train` or `multi-run`")
    Lines(store).check_base(line, earlier.base)
    live = Lines(store).live(line)
    spec = earlier.spec.model_copy(update={"line": line})
    spec = still_published(judged_as(spec, live.version, store) if live else spec, store)
    changes = {"flow": "promote", "of": run_id, "spec": spec, "converter": check_export(earlier.base, spec, store)}
    return earlier.model_copy(update={**changes, "live": live, "act": act})


def judged_as(spec: RunSpec, version: LineVersion, store: Store) -> RunSpec:
    """A run's spec with the line's gate and metric. Raises LineConflict if its LoRA shape differs."""
    shape = spec.training.lora.committed
    if shape != version.lora:
        raise LineConflict(
            f"line {spec.line} has another LoRA shape than {shape}: {version.lora}",
            hint="train with the line's training.lora, or promote to another line",
        )
    line = load(version.run_id, store).spec
    metric = {name: getattr(line.evaluation, name) for name in ("metric", "pattern", "judge", "generation")}
    return spec.model_copy(update={"gate": line.gate, "evaluation": spec.evaluation.model_copy(update=metric)})


def merged_of(run_id: str, store: Store) -> Located:
    """The merged adapter of a run. Raises RunUnknown if it has none."""
    path = store.layout.run(run_id).result
    merged = RunResult.model_validate_json(path.read_bytes()).merged if path.is_file() else None
    if merged is None:
        raise RunUnknown(f"run {run_id} has made no adapter", hint=f"finish it first: backprop resume {run_id}")
    return merged


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
    """The resolved spec of the run with this id. Raises ArtifactDamaged if it cannot be read."""
    path = store.layout.run(run_id).spec
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
    """The one run_id that starts with `prefix`. Raises RunUnknown or RefAmbiguous."""
    found = sorted(run.run_id for run in store.layout.begun())
    matching = [name for name in found if name.startswith(prefix)]
    if not matching:
        raise RunUnknown(f"no run {prefix} in {store.root}", hint="`backprop list-runs` lists the runs")
    if len(matching) > 1:
        raise RefAmbiguous(
            f"{prefix} is the start of {', '.join(name[:12] for name in matching)}", hint="use more digits"
        )
    return matching[0]


def is_warm(prepared: Prepared, store: Store) -> bool:
    """Whether the same work was finished before, so that everything is probably cached."""
    return store.layout.finished(prepared.digest()).is_file()


def mark_finished(prepared: Prepared, store: Store) -> None:
    """Record that all stages of this work are cached."""
    write_atomic(store.layout.finished(prepared.digest()), "")
