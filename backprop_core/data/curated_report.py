"""What curation and the split made of a dataset of a run, for the run's record. No row is read again.

It has places and no text: what is sent on cannot be forgotten as surely as what is in the store.
"""

from backprop_core.data.preference_leaks import HELD_OUT
from backprop_core.schema.dataset_reports import CuratedReport, DroppedRows
from backprop_core.schema.refs import Curated, DatasetRef


def curated_report(curated: Curated, dataset: DatasetRef) -> CuratedReport:
    """The report of a dataset."""
    found = [
        DroppedRows(reason=reason, rows=rows, first=curated.first.get(reason, []))
        for reason, rows in {**curated.dropped, HELD_OUT: dataset.dropped.get(HELD_OUT, 0)}.items()
        if rows
    ]
    return CuratedReport(
        name=dataset.name,
        task=dataset.task,
        digest=dataset.train.digest,
        read=curated.read,
        usable=curated.rows.rows,
        train=dataset.train.rows,
        heldout=dataset.heldout.rows,
        quarantined=curated.quarantined.rows if curated.quarantined else 0,
        preferences=dataset.dropped.get("preferences", 0),
        dropped=sorted(found, key=lambda one: (-one.rows, one.reason)),
        not_trained=dataset.not_trained,
        steps=curated.steps,
    )
