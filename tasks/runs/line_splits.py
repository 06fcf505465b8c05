"""Looks up the held-out and learned rows of a line and of earlier runs, from their records."""

from pydantic import BaseModel

from backprop_core.lines.versions import Lines, Live
from backprop_core.schema.refs import DatasetRef, RowsRef, RunResult, Split
from backprop_core.store.artifacts import Store
from tasks.runs.prepared_run import Prepared, load
from tasks.stages.cache_policy import UnfitRecord, read_result, result_types

OLDER = {"DatasetRef": DatasetRef}  # result of `curate` up to version 1


def held_by(line: str, live: Live, store: Store) -> dict[str, list[RowsRef]]:
    """All rows that a line has ever held out, by task, the champion's first.

    A version without `LineVersion.aside` (an older record) names only its own rows, so earlier versions are read too.
    """
    version = live.version
    found = {task: [rows] for task, rows in version.heldout.items()}
    sets = list((version.aside or {}).items())
    if version.aside is None:
        earlier = Lines(store).ancestors(line, live.number)[:-1]
        every = [one for each in earlier[::-1] for one in each.heldout.items()]
        sets = [(task, rows) for task, rows in every if store.has(rows.digest)]  # else pruned
    for task, rows in sets:
        known = found.setdefault(task, [])
        if rows not in known:
            known.append(rows)
    return found


def of_run(run_id: str, store: Store) -> Split | None:
    """The split of a run; None if it has no result, or an old result whose stage records are gone."""
    path = store.layout.run(run_id).result
    if not path.is_file():
        return None
    result = RunResult.model_validate_json(path.read_bytes())
    return result.split or from_its_stages(result, load(run_id, store), store)


def learned_by(run_id: str, store: Store) -> list[RowsRef]:
    """All rows that a run's adapter was trained on, including earlier runs of its line, as far as known."""
    prepared, rows = load(run_id, store), of_run(run_id, store)
    before = prepared.live.version.learned if prepared.live and prepared.flow == "retrain" else []
    trained = [dataset.train for dataset in rows.datasets] if rows else []
    return sorted({*before, *trained, *general_of(run_id, store)}, key=lambda one: one.digest)


def general_of(run_id: str, store: Store) -> list[RowsRef]:
    """Answers of the untouched base that a run has trained on."""
    path = store.layout.run(run_id).result
    return RunResult.model_validate_json(path.read_bytes()).general if path.is_file() else []


def from_its_stages(result: RunResult, prepared: Prepared, store: Store) -> Split | None:
    """The split of a run older than `RunResult.split`, from its stages' results."""
    made = [(stage.stage, returned(stage.key, store)) for stage in result.stages]
    curated = [one for _, one in made if isinstance(one, DatasetRef)]
    if len(curated) != len(prepared.sources) + len(prepared.watch):
        return None
    datasets = curated[: len(prepared.sources)]
    if new := [one for stage, one in made if stage == "unseen" and isinstance(one, RowsRef)]:
        datasets = [datasets[0].model_copy(update={"train": new[0]})]
    pools = iter([one for stage, one in made if stage == "pool" and isinstance(one, RowsRef)])
    live = prepared.live if prepared.flow == "retrain" else None
    heldout: dict[str, RowsRef] = {}
    for task, sets in by_task(curated, live).items():
        if rows := sets[0] if len(sets) == 1 and sets[0].rows else next(pools, None):
            heldout[task] = rows
    return Split(datasets=datasets, heldout=heldout, aside={})


def by_task(datasets: list[DatasetRef], live: Live | None) -> dict[str, list[RowsRef]]:
    """The held-out sets of each task, the line's first."""
    found = {task: [rows] for task, rows in live.version.heldout.items()} if live else {}
    for dataset in datasets:
        known = found.setdefault(dataset.task, [])
        if dataset.heldout not in known:
            known.append(dataset.heldout)
    return found


def returned(key: str, store: Store) -> BaseModel | None:
    """The cached result of the stage with this key, if any."""
    store.has_result(key)
    try:
        return read_result(store.layout.cache_result(key).read_bytes(), {**result_types(), **OLDER})
    except (FileNotFoundError, UnfitRecord):
        return None
