"""Prunes the store on request and after a release; pins and unpins artifacts."""

import logging

from backprop_core.errors import RunActive, RunUnknown
from backprop_core.lines import prune as core
from backprop_core.lines.versions import Lines
from backprop_core.publishing.ollama import Ollama, remove_own
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import RunSpec
from backprop_core.store import pins
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digests_in
from tasks.runs.prepared_run import full_run_id
from tasks.tracking.withdrawal import remove_copies

log = logging.getLogger(__name__)


def prune(
    config: Settings,
    *,
    keep: int = core.KEEP,
    max_bytes: int | None = None,
    line: str | None = None,
    only: core.Pruned | None = None,
    dry_run: bool,
) -> core.Pruned:
    """Remove artifacts not used by a kept version, pin, recent result or unfinished run; `only` those listed.

    Raises RunActive while a run is going on.
    """
    store = Store(config.store_path)
    try:
        pruned = core.prune(
            store,
            keep=keep,
            keep_days=config.keep_days,
            max_bytes=max_bytes,
            line=line,
            only=only,
            dry_run=dry_run,
            remove_tag=core.tag_remover(store, remove_tag),
        )
        if not dry_run:  # a copy on the same disk is a link: as long as it is there, nothing is freed
            for left in remove_copies(config, store.was_removed, rows=False):
                log.warning("%s", left)
        return pruned
    finally:
        store.close()


def keep(ref: str, config: Settings) -> tuple[str, int]:
    """Pin a reference's artifacts; returns the pin's name and the number of artifacts.

    A line means its champion. Raises RunUnknown, RefAmbiguous, or ArtifactMissing if one of the artifacts is gone.
    """
    store = Store(config.store_path)
    name, named = meant(ref, store)
    there = {digest for digest in named if store.has(digest)}
    pins.pin(name, there, store)
    return name, len(there)


def release(ref: str, config: Settings) -> str:
    """Remove a pin. Raises RunUnknown if there is none."""
    store = Store(config.store_path)
    known = pins.pinned(store)
    names = [ref] if ref in known else [name for name in known if name.startswith(ref)]
    if len(names) != 1:
        raise RunUnknown(f"{ref} is not pinned", hint="`backprop store keep` lists all pins")
    pins.unpin(names[0], store)
    return names[0]


def kept(config: Settings) -> dict[str, int]:
    """The number of artifacts of each pin."""
    return {name: len(digests) for name, digests in pins.pinned(Store(config.store_path)).items()}


def meant(ref: str, store: Store) -> tuple[str, set[str]]:
    """The name of a pin, and all artifacts that the run or version uses."""
    line, _, number = ref.partition("@")
    lines = Lines(store)
    if line not in lines.names():
        run = store.layout.run(full_run_id(ref, store))
        return run.run_id, core.named_by(run)
    version = int(number) if number.isdecimal() else lines.champion(line)
    if version is None or (number and not number.isdecimal()):
        raise RunUnknown(f"{ref} is not a version of line {line}", hint=f"write {line}@1")
    named = digests_in(lines.version(line, version).model_dump_json())
    return f"{line}@{version}", named | core.digests_of(store.layout.line(line).release(version))


def remove_tag(model: str) -> None:
    with Ollama() as server:
        remove_own(model, server, Store(settings().store_path))


def retain(spec: RunSpec, result: RunResult) -> None:
    """Prune a line's leftovers after a release, by its retention; skipped while a run is active."""
    keep = spec.publish.keep
    if keep is None or result.status != "finished":
        return
    try:
        made = prune(settings(), keep=keep, line=spec.line, dry_run=False)
        log.info("pruned line %s: %d artifacts, %.1f MiB", spec.line, made.artifacts, made.bytes / 2**20)
    except RunActive as error:
        log.info("line %s is not pruned now: %s", spec.line, error.message)
