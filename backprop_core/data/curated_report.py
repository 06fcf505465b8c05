"""What curation and the split made of a dataset of a run, for the run's record. No row is read again.

It has places and no text: what is sent on cannot be forgotten as surely as what is in the store.
"""

import json
from pathlib import Path

from backprop_core.data.parsed_items import Place
from backprop_core.data.row_lineage import SAMPLES
from backprop_core.schema.dataset_reports import CuratedReport, DroppedRows
from backprop_core.schema.refs import Curated, DatasetRef
from backprop_core.store.artifacts import Store


def curated_report(curated: Curated, dataset: DatasetRef, store: Store) -> CuratedReport:
    """The report of a dataset."""
    places = places_of(store.local(curated.lineage)) if curated.lineage else {}
    found = [
        DroppedRows(reason=reason, rows=rows, first=places.get(reason, [])) for reason, rows in curated.dropped.items()
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
        preferences=curated.preferences.rows if curated.preferences else 0,
        dropped=sorted(found, key=lambda one: (-one.rows, one.reason)),
        not_trained=dataset.not_trained,
        steps=curated.steps,
    )


def places_of(lineage: Path) -> dict[str, list[str]]:
    """Where the first rows of each reason stand."""
    found: dict[str, list[str]] = {}
    for line in (lineage / SAMPLES).read_bytes().splitlines():
        one = json.loads(line)
        found.setdefault(one["reason"], []).append(str(Place(one["file"], one["unit"], one["number"])))
    return found
