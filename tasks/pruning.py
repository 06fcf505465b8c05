"""Making room in the store, when a person asks and after a release."""

import logging
from typing import TYPE_CHECKING

from backprop_core import prune as core
from backprop_core.errors import RunActive
from backprop_core.ollama import Ollama
from backprop_core.settings import Settings, settings
from backprop_core.store import Store

if TYPE_CHECKING:
    from tasks.run import Run

log = logging.getLogger(__name__)


def prune(
    config: Settings, *, keep: int = core.KEEP, max_bytes: int | None = None, line: str | None = None, dry_run: bool
) -> core.Pruned:
    """Remove what no version that is kept and no unfinished run names. Raises RunActive while a run is going on."""
    store = Store(config.store_path)
    try:
        remover = core.tag_remover(store, remove_tag)
        return core.prune(store, keep=keep, max_bytes=max_bytes, line=line, dry_run=dry_run, remove_tag=remover)
    finally:
        store.close()


def remove_tag(model: str) -> None:
    with Ollama() as server:
        server.remove(model)


def retain(run: "Run") -> None:
    """After a release: what the line's runs have left behind goes, as its retention says, unless a run is going on."""
    keep = run.spec.publish.keep
    if keep is None or run.outcome is None or run.outcome.status != "finished":
        return
    try:
        made = prune(settings(), keep=keep, line=run.spec.line, dry_run=False)
        log.info("pruned line %s: %d artifacts, %.1f MiB", run.spec.line, made.artifacts, made.bytes / 2**20)
    except RunActive as error:
        log.info("line %s is not pruned now: %s", run.spec.line, error.message)
