"""Files of rows that an earlier run has read: where one is missing here, its copy in MLflow takes its place."""

import logging
from collections.abc import Iterator
from pathlib import Path

from backprop_core.errors import MLflowUnreachable, RunUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import is_address
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec
from tasks.runs.prepared_run import Prepared

log = logging.getLogger(__name__)
Asked = tuple[str, str | None]  # a path as it was written, and the encoding that was set: both decide what is read


class RecordedSources:
    """The files that a run has read, by what it was asked for."""

    def __init__(self, run_id: str, prepared: Prepared) -> None:
        self._run_id, self._read = run_id, dict(files_of(prepared))

    def __call__(self, path: str, encoding: str | None, scratch: Path) -> SourceRef | None:
        """The copy of a local file that is missing, in `scratch`; None if it is there, or MLflow has no copy.

        Raises ArtifactDamaged.
        """
        known = self._read.get((path, encoding))
        if known is None or is_address(path) or Path(path).expanduser().exists():
            return None
        target = scratch / known.digest
        if not target.exists() and not self._fetch(known, target, scratch):
            return None
        log.warning("%s is missing: run %s has its rows from their copy in MLflow", path, self._run_id[:12])
        return known.model_copy(update={"path": str(target)})

    def _fetch(self, source: SourceRef, target: Path, scratch: Path) -> bool:
        """Write MLflow's copy of a source to `target`; False if it has none, or does not answer."""
        from tasks.tracking.recorded import recorded_run

        try:
            return recorded_run(settings(), self._run_id).source(source, target, scratch)
        except (MLflowUnreachable, RunUnknown) as error:
            log.warning("whether MLflow has a copy of %s is not known: %s", source.path, error.message)
            return False


def files_of(prepared: Prepared) -> Iterator[tuple[Asked, SourceRef]]:
    """What a run was asked to read, and what it found there."""
    spec = prepared.spec
    for datasets, found in ((spec.datasets, prepared.sources), (spec.evaluation.watch, prepared.watch)):
        for dataset, source in zip(datasets, found, strict=False):
            yield asked(dataset, dataset.path), source.data
            if dataset.heldout and source.heldout:
                yield asked(dataset, dataset.heldout), source.heldout


def asked(dataset: DatasetSpec, path: str) -> Asked:
    """What a dataset asks for at a path."""
    return path, dataset.encoding
