"""Resolves the spec of a new run before anything is computed: base, data, line, export. No Prefect."""

from backprop_core.errors import ConfigInvalid, LineConflict
from backprop_core.lines.renaming import first_name
from backprop_core.lines.versions import Lines, Live
from backprop_core.models import base as bases
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import (
    ApprovalSpec,
    LoraSpec,
    MergeSpec,
    ModelSpec,
    PublishSpec,
    RunSpec,
)
from backprop_core.store.artifacts import Store
from tasks.runs import rebase
from tasks.runs.line_length import longest_read
from tasks.runs.preflight_checks import check_export, check_gate, check_metric, check_training, harness_tasks
from tasks.runs.prepared_run import Prepared
from tasks.runs.publish_targets import still_published
from tasks.runs.resolve_defaults import decide
from tasks.runs.resolve_line import with_memory
from tasks.runs.restored_lines import restore_line
from tasks.runs.sources import downloads, refuse_collisions, sources
from tasks.runs.worker_process import interpreter


def prepare(flow: str, spec: RunSpec, store: Store) -> Prepared:
    """Find the base and the data, check the configuration, and fill in defaults.

    Raises the coded errors of base, data, export and lines, of `tasks.runs.resolve_defaults`, and UnslothNotAvailable.
    """
    if flow == "rebase":
        return rebase.prepare(spec, store)
    check_metric(spec.evaluation)
    check_gate(spec.gate, spec.evaluation.metric)
    interpreter(settings(), spec.training.backend)
    if flow == "retrain":
        restore_line(spec.line, store)
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
    task, scratch = first_name(spec.line, store.layout) if flow == "retrain" else None, downloads(store)
    refuse_collisions([*([] if task else spec.datasets), *spec.evaluation.watch])
    found = sources(spec.datasets, scratch, task=task)
    watched = sources(spec.evaluation.watch, scratch)
    spec, about_line = with_memory(spec, live)
    read, least = [source.data for source in found], longest_read(spec.line, live, store)
    spec, chosen = decide(spec, base, read, store, later=live is not None, least=least)
    continues = live is not None or len(spec.datasets) > 1
    check_training(spec.training, bases.local(base, store), spec.export, continues=continues)
    return Prepared(
        flow=flow,
        spec=spec,
        defaults=[*chosen, *about_line],
        base=base,
        sources=found,
        watch=watched,
        live=live,
        converter=converter,
        tasks=harness_tasks(spec.evaluation),
    )


def continued(spec: RunSpec, live: Live) -> RunSpec:
    """Use the line's LoRA shape and merge strategy. Raises LineConflict if the spec asks for others.

    A field that is not set asks for nothing.
    """
    version, merge = live.version, spec.merge
    asked = [("training.lora", like(version.lora, spec.training.lora), version.lora)]
    asked += [
        (f"merge.{name}", getattr(merge, field), getattr(version.merge, field))
        for field, name in (("strategy", "strategy"), ("merge_a", "merge_a"), ("weight", "lambda"))
        if field in merge.model_fields_set
    ]
    for name, wanted, own in asked:
        if wanted != own:
            raise LineConflict(
                f"line {spec.line} has another {name} than {wanted}: {own}", hint="remove it, or start another line"
            )
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(update={"lora": version.lora}),
            "merge": version.merge if merge.back_off is None else with_back_off(version.merge, merge.back_off),
        }
    )


def with_back_off(merge: MergeSpec, back_off: bool) -> MergeSpec:
    """The line's merge, with back-off on or off: unlike the strategy, it may change from run to run."""
    return merge.model_copy(update={"back_off": back_off})


def like(own: LoraSpec, asked: LoraSpec) -> LoraSpec:
    """The requested spec, with the line's values in place of fields that are not set."""
    open_ = LoraSpec.model_fields.keys() - asked.model_fields_set
    return asked.model_copy(update={name: getattr(own, name) for name in open_})
