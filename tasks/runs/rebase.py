"""Resolves a rebase: the stored rows of a line's champion, to be trained on another base. No Prefect."""

from collections.abc import Mapping
from typing import Any

from backprop_core.data.loading import find
from backprop_core.data.row_files import ROWS
from backprop_core.errors import ConfigInvalid, DatasetMissing, RunUnknown
from backprop_core.evaluation.bits_per_byte import METRIC as BITS_PER_BYTE
from backprop_core.lines.versions import Lines, LineVersion, Live
from backprop_core.models import base as bases
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import LineName
from backprop_core.schema.records import Spec
from backprop_core.schema.specs import TEACHER_FORCED, DatasetSpec, ModelSpec, RunSpec
from backprop_core.store.artifacts import Store
from tasks.runs.preflight_checks import (
    check_export,
    check_gate,
    check_metric,
    check_preferences,
    check_training,
    harness_tasks,
)
from tasks.runs.prepared_run import Prepared, load
from tasks.runs.publish_targets import still_published
from tasks.runs.resolve_defaults import decide
from tasks.runs.sources import Source, downloads
from tasks.runs.worker_process import interpreter

HINT = "remove evaluation.watch; a retrain of the line can add it afterwards"
JUDGED = "set training.preference.loss, as in the run that trained them"


def asked(line: LineName, model: ModelSpec, given: Mapping[str, Any], store: Store) -> RunSpec:
    """The spec of a rebase: that of the run behind the line's champion, on another base, with the fields in `given`.

    `given` has parts of a spec, in which the fields that are set count, and values; None counts as not given. What the
    run chose automatically is left open. Raises RunUnknown, DatasetMissing.
    """
    version = champion(line, store).version
    spec = load(version.run_id, store).asked
    own = {
        "line": line,
        "model": model,
        "datasets": stored(line, version, store),
        "training": spec.training.model_copy(update={"lora": version.lora}),
        "merge": version.merge,
        "evaluation": spec.evaluation.model_copy(update={"watch": []}),  # the line holds out what it watches
        "max_seconds": None,
    }
    spec = spec.model_copy(update=own)
    return spec.model_copy(update={name: over(getattr(spec, name), value) for name, value in given.items()})


def over(known: Any, given: Any) -> Any:
    """A value, or a part of a spec with the fields that are set in `given`."""
    if not isinstance(given, Spec):
        return known if given is None else given
    tree = merged(known.model_dump(exclude_unset=True), given.model_dump(exclude_unset=True))
    return type(given).model_validate(tree)


def merged(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of fields as one, in which `given` wins."""
    both = {
        name: merged(known[name], value) if isinstance(value, dict) and isinstance(known.get(name), dict) else value
        for name, value in given.items()
    }
    return {**known, **both}


def asked_here(line: LineName, model: str) -> RunSpec:
    """The spec of a rebase as `asked` makes it, in the store of the settings."""
    return asked(line, ModelSpec(name=model), {}, Store(settings().store_path))


def moved(line: LineName, model: ModelSpec, given: Mapping[str, Any], store: Store) -> Prepared:
    """Resolve a rebase. Raises what `asked` and `prepare` raise."""
    return prepare(asked(line, model, given, store), store)


def prepare(spec: RunSpec, store: Store) -> Prepared:
    """Find the base, check that the line's rows are there, and fill in defaults.

    Raises RunUnknown, DatasetMissing, ConfigInvalid, and the coded errors of base, export and defaults.
    """
    check_metric(spec.evaluation)
    interpreter(settings(), spec.training.backend)
    if spec.evaluation.watch:
        raise ConfigInvalid("a rebase scores what the line holds out, and watches nothing else", hint=HINT)
    live = champion(spec.line, store)
    version = live.version
    check_preferences(spec.line, version.datasets, spec.training, hint=JUDGED)
    spec = spec.model_copy(update={"datasets": stored(spec.line, version, store), "merge": version.merge})
    base = bases.resolve(spec.model, store)
    if base.digest == version.base.digest:
        raise ConfigInvalid(
            f"line {spec.line} is on {base.name} already ({base.digest[:12]})", hint="name another base with --model"
        )
    check_gate(spec.gate, compared_in(spec.evaluation.metric, same_tokens=bases.same_tokens(base, version.base)))
    spec = still_published(spec, store)
    converter = check_export(base, spec, store)
    sources = [source(dataset.name, one, store) for dataset, one in zip(version.datasets, spec.datasets, strict=True)]
    spec, chosen = decide(spec, base, [one.data for one in sources], store, later=False)
    check_training(spec.training, bases.local(base, store), spec.export, continues=len(sources) > 1)
    return Prepared(
        flow="rebase",
        spec=spec,
        defaults=chosen,
        base=base,
        sources=sources,
        watch=[],
        live=live,
        converter=converter,
        tasks=harness_tasks(spec.evaluation),
    )


def compared_in(metric: str, *, same_tokens: bool) -> str:
    """The metric in which two bases are compared: what counts tokens compares only where both make the same tokens."""
    by_bytes = not same_tokens and metric in TEACHER_FORCED - {"exact_match"}
    return BITS_PER_BYTE if by_bytes else metric


def champion(line: LineName, store: Store) -> Live:
    """The champion of a line. Raises RunUnknown if it has none."""
    live = Lines(store).live(line)
    if live is None:
        raise RunUnknown(f"line {line} has no champion", hint="`backprop lines` lists all lines")
    return live


def stored(line: LineName, version: LineVersion, store: Store) -> list[DatasetSpec]:
    """The stored datasets of a version, in the order in which they were trained. Raises DatasetMissing."""
    needed = [(one.name, one.train) for one in version.datasets]
    needed += [(f"held-out rows of {task}", rows) for task, rows in version.heldout.items()]
    if gone := [name for name, rows in needed if not store.has(rows.digest)]:
        raise DatasetMissing(
            f"the store no longer has what line {line} was trained and scored on: {', '.join(gone)}",
            hint="start another line from the files: backprop retrain --line OTHER --model MODEL --data FILE",
        )
    return [
        DatasetSpec(path=str(store.layout.artifact(one.train.digest) / ROWS), task=one.task) for one in version.datasets
    ]


def source(name: str, dataset: DatasetSpec, store: Store) -> Source:
    """A stored dataset as the source of a run."""
    assert dataset.task
    return Source(name=name, task=dataset.task, data=find(dataset, scratch=downloads(store)), heldout=None)
