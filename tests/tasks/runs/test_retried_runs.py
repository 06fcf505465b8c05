"""Which run another try goes on with, and what a run that does everything again takes from the cache. No Prefect."""

from pathlib import Path

import pytest

from backprop_core.schema.refs import BaseRef, ErrorRecord, RunResult, Status
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs.prepared_run import Prepared, save
from tasks.runs.recomputed import Afresh
from tasks.runs.retried_runs import can_go_on

RUN, KEY, OTHER = "a" * 32, "1" * 64, "2" * 64


def begun(store: Store, flow: str, *, fresh: bool = False) -> Prepared:
    """A run's spec, as its first moment leaves it."""
    base = BaseRef(name="base", digest="b" * 64)
    spec = RunSpec(datasets=[DatasetSpec(path="a")])
    prepared = Prepared(flow=flow, spec=spec, base=base, sources=[], watch=[], fresh=fresh)
    save(prepared, RUN, store)
    return prepared


@pytest.mark.parametrize(
    ("status", "retryable", "goes_on"),
    [(None, False, True), ("interrupted", False, True), ("failed", True, True), ("failed", False, False)],
)
def test_what_another_try_goes_on_with(tmp_path: Path, status: Status | None, retryable: bool, goes_on: bool) -> None:
    """A run that was killed, stopped, or failed for a while; never drift: prune may have taken its champion."""
    store = Store(tmp_path)
    begun(store, "train")
    if status:
        error = ErrorRecord(code="X", message="", hint="", retryable=retryable)
        result = RunResult(run_id=RUN, line="x", status=status, spec={}, error=error)
        write_atomic(store.layout.run(RUN).result, result.model_dump_json())
    assert can_go_on(RUN, store) is goes_on
    begun(store, "drift")
    assert not can_go_on(RUN, store)


def test_fresh_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    """What is done again has the same results: a spec with and without `fresh` has one digest."""
    store = Store(tmp_path)
    assert begun(store, "train").digest() == begun(store, "train", fresh=True).digest()


def test_a_fresh_run_knows_what_it_has_done(tmp_path: Path) -> None:
    """Gone on with, it does again all but what it ended itself, and keeps the checkpoints of what it began itself."""
    first = Afresh(tmp_path / "fresh.txt", asked=True)
    for key in (KEY, OTHER):
        assert first.is_due(key) and not first.has_begun(key)
        first.begin(key)
    first.end(KEY)
    assert not first.is_due(KEY) and first.is_due(OTHER)  # what three files are made of is made once
    second = Afresh(tmp_path / "fresh.txt", asked=True)
    assert not second.is_due(KEY)
    assert second.is_due(OTHER) and second.has_begun(OTHER)
    assert second.is_due("3" * 64) and not second.has_begun("3" * 64)


def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    """A stage whose end was not wholly noted is done again."""
    (tmp_path / "fresh.txt").write_text(f"begun {KEY}\ndone {KEY[:40]}")
    after = Afresh(tmp_path / "fresh.txt", asked=True)
    assert after.is_due(KEY) and after.has_begun(KEY)


def test_without_fresh_nothing_is_noted(tmp_path: Path) -> None:
    """The cache alone decides."""
    run = Afresh(tmp_path / "fresh.txt", asked=False)
    run.begin(KEY)
    run.end(KEY)
    assert not run.is_due(KEY) and not list(tmp_path.iterdir())
