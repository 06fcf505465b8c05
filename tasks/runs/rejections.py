"""Remembers rejected retrains: the same rows on the same champion with the same settings are not trained again."""

from datetime import UTC, datetime

from pydantic import Field

from backprop_core.lines.renaming import first_name
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Digest, RowsRef, RunId
from backprop_core.stages import versions
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of, part
from tasks.runs.prepared_run import Prepared


class Rejection(Record):
    """A rejected candidate."""

    run_id: RunId
    at: datetime
    reason: str

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        return f"rejected on {self.at:%Y-%m-%d}: {self.reason}"


class Attempt(Record):
    """Identity of a retrain: everything that determines whether it is rejected."""

    key: Digest = Field(description="Digest of champion, new rows, held-out rows and settings.")
    run_id: RunId

    def earlier(self, store: Store) -> Rejection | None:
        """An earlier run's rejection with the same key, or None."""
        path = store.layout.rejection(self.key)
        found = Rejection.model_validate_json(path.read_bytes()) if path.is_file() else None
        return found if found and found.run_id != self.run_id else None

    def note(self, reason: str, store: Store) -> None:
        """Store the rejection and its reason."""
        rejection = Rejection(run_id=self.run_id, at=datetime.now(UTC), reason=reason)
        write_atomic(store.layout.rejection(self.key), rejection.model_dump_json())


def attempt(run_id: str, prepared: Prepared, rows: RowsRef, heldout: dict[str, RowsRef], store: Store) -> Attempt:
    """The identity of a retrain, computed once its rows are known; includes the stages' versions.

    The line counts by its first name: under another one the same candidate is rejected as before.
    """
    spec = prepared.spec
    settings = [spec.training, spec.merge, spec.evaluation.model_copy(update={"watch": []}), spec.gate]
    parts = [
        first_name(spec.line, store.layout),
        versions(),
        [one.model_dump(mode="json") for one in settings],
        prepared.base.digest,
        part(prepared.live),
        rows.digest,
        {task: ref.digest for task, ref in heldout.items()},
    ]
    return Attempt(key=digest_of(parts), run_id=run_id)
