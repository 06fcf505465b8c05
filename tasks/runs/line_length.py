"""How long the rows of a line are: what its versions have read, later runs read and score as well."""

import logging

from backprop_core.errors import ArtifactDamaged
from backprop_core.lines.versions import Lines, Live
from backprop_core.schema.specs import Limit, TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs.prepared_run import load

log = logging.getLogger(__name__)


def longest_read(line: str, live: Live | None, store: Store) -> int:
    """The maximum tokens of an example in the runs behind a champion, of those on its base; 0 where none is known."""
    versions = Lines(store).on_base(line, live.number, live.version.base) if live else []
    known = [one.run_id for one in versions if store.layout.run(one.run_id).spec.is_file()]
    return max((length_of(run_id, store) for run_id in known), default=0)


def length_of(run_id: str, store: Store) -> int:
    """The maximum tokens of an example in a run; 0, with a warning, if its record cannot be read."""
    try:
        return load(run_id, store).spec.training.max_length
    except ArtifactDamaged as error:
        log.warning("how long the rows of an earlier version are is not known: %s", error.message)
        return 0


def scored_length(training: TrainSpec, least: int) -> int | Limit:
    """The length limit of rows that score: that of the training, but at least so many tokens.

    Else a run that reads shorter rows would not be asked about the longer ones that its line has learned.
    """
    return training.model_copy(update={"max_length": max(training.max_length, least)}).limit
