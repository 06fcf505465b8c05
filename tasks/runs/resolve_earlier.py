"""Resolves what an earlier run or a line has made: to export, publish, release, promote or score it. No Prefect."""

from collections.abc import Sequence

from backprop_core.errors import ConfigInvalid, LineConflict, NotGated, RefAmbiguous, RunUnknown
from backprop_core.lines.renaming import first_name
from backprop_core.lines.versions import Lines, LineVersion, Live
from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import Act
from backprop_core.schema.refs import AdapterRef, Located, RunResult
from backprop_core.schema.specs import (
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    PublishSpec,
    RunSpec,
)
from backprop_core.store.artifacts import Store
from tasks.runs.adapter_directory import adapter_in, holds_adapter, is_path
from tasks.runs.preflight_checks import check_export, check_gate, check_metric, check_repo, harness_tasks
from tasks.runs.prepared_run import Prepared, full_run_id, load
from tasks.runs.publish_targets import last_release, still_published
from tasks.runs.restored_lines import restore_line
from tasks.runs.restored_runs import bring_artifacts
from tasks.runs.sources import downloads, refuse_collisions, sources


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
    bring_artifacts()
    restore_line(line, store)
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
    if (report and report.passes) or any(move.number == live.number and move.act.forced for move in moves):
        return False
    if not act.forced:
        said = report.refusal if report else "was never checked by the gate"
        to = f" --to {live.number}" if flow == "rollback" else ""
        raise NotGated(
            f"version {live.number} of line {line} {said}",
            hint=f"to release it anyway: backprop {flow} {line}{to} --force --reason TEXT",
        )
    return True


def to_rollback(line: str, number: int | None, act: Act, store: Store) -> Prepared:
    """Resolve a rollback to a version, by default the one before the champion. Raises RunUnknown and NotGated."""
    restore_line(line, store)
    live = Lines(store).live(line)
    before = number or ((live.version.parent or live.number - 1) if live else 0)
    if not before:
        raise RunUnknown(f"line {line} has no version before its champion", hint="`backprop lines` lists all lines")
    return to_release("rollback", line, before, PublishSpec(), ExportSpec(), act, store)


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
    bring_artifacts()
    line, _, version = ref.partition("@")
    if not is_path(ref) and not is_known(line, store):
        restore_line(line, store)
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
    bring_artifacts()
    restore_line(line, store)
    live = Lines(store).live(line)
    if live is None:
        raise RunUnknown(f"line {line} has no champion", hint="retrain it once; `backprop lines` lists what there is")
    earlier = by(live.version.run_id, live.version.merged, store)
    evaluation = earlier.spec.evaluation.model_copy(update={"watch": []})
    spec = earlier.spec.model_copy(update={"line": line, "datasets": [dataset], "evaluation": evaluation})
    own = {"sources": sources([dataset], downloads(store), task=first_name(line, store.layout)), "watch": []}
    return earlier.model_copy(update={"flow": "drift", "spec": spec, "live": live, **own})


def promoted(ref: str, line: str, act: Act, store: Store) -> Prepared:
    """Resolve an earlier run, to promote it to a version of a line; an existing line keeps its own gate.

    Raises RunUnknown, RefAmbiguous, or LineConflict if the line has another base or another LoRA shape.
    """
    bring_artifacts()
    restore_line(line, store)
    run_id = full_run_id(ref, store)
    earlier = load(run_id, store)
    if not flow_info(earlier.flow).makes_candidates:
        raise RunUnknown(f"{ref} is a {earlier.flow} run", hint="promote a run of `train` or `multi-run`")
    Lines(store).check_base(line, earlier.base)
    live = Lines(store).live(line)
    spec = earlier.spec.model_copy(update={"line": line})
    spec = still_published(judged_as(spec, live.version, store) if live else spec, store)
    check_gate(spec.gate, spec.evaluation.metric)
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
