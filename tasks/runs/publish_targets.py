"""Where a line's champion was published: its next version goes there too."""

from typing import TYPE_CHECKING

from backprop_core.lines.versions import Lines
from backprop_core.schema.specs import PublishSpec, RunSpec
from backprop_core.store.artifacts import Store

if TYPE_CHECKING:
    from backprop_core.publishing.release_transaction import Release


def still_published(spec: RunSpec, store: Store) -> RunSpec:
    """Publish to the same targets as the line's champion, unless others are configured."""
    if spec.publish != PublishSpec() or (known := last_release(spec.line, store)) is None:
        return spec
    export = spec.export if spec.export.quantizations else known.export
    return spec.model_copy(update={"publish": known.publish, "export": export})


def last_release(line: str, store: Store) -> "Release | None":
    """The release of a line's champion; None if it was never published."""
    from backprop_core.publishing.release_transaction import released

    champion = Lines(store).champion(line)
    return released(line, champion, store) if champion else None
