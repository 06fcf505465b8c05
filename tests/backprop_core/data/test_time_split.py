"""Datasets split by time: the latest rows are held out in all nights of a line, and what is not clear is an error."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.split_files import split_files
from backprop_core.errors import ConfigInvalid, InputValidationFailed, NoRows
from backprop_core.schema.refs import Batch, RowsRef, Split
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.store.cache_keys import stage_key
from tests.backprop_core.data.test_curation import Bench, Rows, pair, questions

START = datetime(2026, 1, 1, tzinfo=UTC)
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def at(day: float, number: int | str | None = None, **more: Any) -> dict[str, Any]:
    """A row of a day."""
    asked = pair(f"Row {day if number is None else number}")
    return {**asked, "created_at": (START + timedelta(days=day)).isoformat(), **more}


def days(count: int, start: int = 0) -> Rows:
    return [at(day) for day in range(start, start + count)]


def batch(bench: Bench, rows: Rows, last: float = 0.1, near: float | None = None, **spec: Any) -> Batch:
    curation = {"curation": {"near_duplicates": near}} if near else {}
    source = bench.read(rows, time_split={"field": "created_at", "last": last}, **curation, **spec)
    return Batch(name="data", task="task", source=source, last=last, curation=CurationSpec(near_duplicates=near))


def held(bench: Bench, made: Split) -> set[str]:
    return {q for ref in (*made.heldout.values(), *made.aside.values()) for q in questions(bench.rows(ref))}


def trained(bench: Bench, made: Split) -> set[str]:
    return set(questions(bench.rows(made.datasets[0].train)))


def test_the_latest_rows_are_held_out(bench: Bench) -> None:
    """Of 200 days the last 20 are held out, whatever the order of the file; by hash it would be others."""
    rows = days(200)
    made = bench.split(batch(bench, rows))
    assert held(bench, made) == set(questions(rows[180:])) and trained(bench, made) == set(questions(rows[:180]))
    again = bench.split(batch(bench, rows[::-1]))
    assert (again.heldout, again.datasets[0].train) == (made.heldout, made.datasets[0].train)
    assert held(bench, bench.split(bench.batch(rows))) != held(bench, made)


def test_late_rows_over_the_cap_are_not_trained(bench: Bench) -> None:
    """Of the latest rows `heldout_max` score; the others are set aside, where those by hash would be trained."""
    made = bench.split(batch(bench, days(200)), heldout_max=7)
    assert made.heldout["task"].rows == 7 and made.aside["task"].rows == 13
    assert held(bench, made) == set(questions(days(20, 180)))
    assert made.datasets[0].not_trained == {"held_out": 7, "set_aside": 13}


def test_few_rows_hold_out_a_few(bench: Bench) -> None:
    """A dataset whose share is too small for the gate holds out the latest five, or a third."""
    for count, expected in ((30, 5), (9, 3), (2, 1)):
        assert held(bench, bench.split(batch(bench, days(count)))) == set(questions(days(count)[-expected:]))


@quick
@given(st.lists(st.integers(0, 12), min_size=8, max_size=60), st.floats(0.05, 0.6), st.integers(1, 20))
def test_no_time_is_on_both_sides(bench: Bench, times: list[int], last: float, cap: int) -> None:
    """Whatever the times, no trained row is as late as a held-out one, and no row is lost."""
    rows = [at(day, number) for number, day in enumerate(times)]
    day_of = dict(zip(questions(rows), times, strict=True))
    try:
        made = bench.split(batch(bench, rows, last), heldout_max=cap)
    except NoRows:
        latest = sorted(times)[-max(round(last * len(times)), min(5, len(times) // 3))]
        assert latest == min(times)
        return
    late, early = held(bench, made), trained(bench, made)
    assert late | early == set(day_of) and len(late) >= round(last * len(times))
    assert max(day_of[q] for q in early) < min(day_of[q] for q in late)


def test_rows_of_one_time_are_an_error(bench: Bench) -> None:
    """Where all rows have one time, nothing could be trained: the error counts them."""
    with pytest.raises(NoRows, match="30 of 30 rows have the same time"):
        bench.split(batch(bench, [at(1, number) for number in range(30)]))


def test_a_night_of_one_time_is_trained(bench: Bench) -> None:
    """In a line that has held-out rows, new rows that all have one time are trained, and the others stay held out."""
    before = bench.split(batch(bench, days(100)))
    line: dict[str, Any] = {"held": {"task": [before.heldout["task"]]}, "learned": [before.datasets[0].train]}
    night = [at(200, number) for number in range(1000, 1030)]
    made = bench.split(batch(bench, night), **line)
    assert held(bench, made) == held(bench, before) and trained(bench, made) == set(questions(night))


def test_a_row_of_two_times_is_of_the_earlier(bench: Bench) -> None:
    """A duplicate that comes again later is no new row."""
    rows = days(100)
    again = {**rows[3], "created_at": at(500)["created_at"]}
    for order in ([*rows, again], [again, *rows]):
        assert "Row 3" not in held(bench, bench.split(batch(bench, order)))


def test_near_duplicates_across_the_boundary(bench: Bench) -> None:
    """With `near_duplicates`, of two such rows on both sides at most the late one is left."""
    said = " ".join(f"word{place}" for place in range(30))
    rows = [*days(100), at(5.5, f"{said} early"), at(99.5, f"{said} late")]
    late, early = f"Row {said} late", f"Row {said} early"
    made = bench.split(batch(bench, rows, near=0.8))
    assert len({late, early} & (held(bench, made) | trained(bench, made))) == 1
    plain = bench.split(batch(bench, rows))
    assert late in held(bench, plain) and early in trained(bench, plain)


@pytest.mark.parametrize("cap", [4, 1000])
def test_groups_stay_on_one_side(bench: Bench, cap: int) -> None:
    """Earlier rows of a customer whose late rows are held out are not trained."""
    rows = [at(day, customer=day % 40 if day < 160 else day % 5) for day in range(200)]
    customer = {row["messages"][0]["content"]: row["customer"] for row in rows}
    made = bench.split(batch(bench, rows, group_by="customer"), heldout_max=cap)
    late, early = ({customer[q] for q in side} for side in (held(bench, made), trained(bench, made)))
    assert late == set(range(5)) and early == set(range(5, 40))


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("cap", [6, 1000])
def test_a_row_of_a_line_stays_on_its_side(bench: Bench, grows: bool, cap: int) -> None:
    """Over the nights of a line: held out are the last of the new rows, no learned one ever, and none comes back."""
    learned: list[RowsRef] = []
    known: dict[str, list[RowsRef]] = {}
    held_ever, trained_ever = set[str](), set[str]()
    for start, end in ((0, 60), (60, 160), (160, 190)):
        rows = days(end, 0) if grows else days(end - start, start)
        made = bench.split(batch(bench, rows), held=known, learned=learned, heldout_max=cap)
        new_late = held(bench, made) - held_ever
        assert held_ever <= held(bench, made)
        assert new_late == set(questions(days(end)[end - round((end - start) / 10) :]))
        held_ever |= new_late
        trained_ever |= trained(bench, made)
        assert not held_ever & trained_ever and held_ever | trained_ever == set(questions(days(end)))
        known = {"task": [made.heldout["task"], *([made.aside["task"]] if made.aside else [])]}
        learned.append(made.datasets[0].train)


def test_a_line_that_turns_to_time_keeps_its_sides(bench: Bench) -> None:
    """Rows that were held out by hash stay held out, and learned ones learned, once the line is split by time."""
    before = bench.split(bench.batch(days(100)))
    line: dict[str, Any] = {"held": {"task": [before.heldout["task"]]}, "learned": [before.datasets[0].train]}
    made = bench.split(batch(bench, days(200)), **line)
    assert held(bench, made) == held(bench, before) | set(questions(days(10, 190)))
    assert not held(bench, made) & trained(bench, before)


@pytest.mark.parametrize("value", [None, "", "soon", 7, 20260131, True, float("nan"), "2026-13-01", [1]])
def test_a_row_without_a_time_is_an_error(bench: Bench, value: Any) -> None:
    """A missing or unreadable time names file and line."""
    rows = [*days(3), {**pair("x"), "created_at": value if value == value else "NaN"}]
    with pytest.raises(InputValidationFailed, match=r"1\.jsonl: line 4: time_split.field created_at: "):
        batch(bench, rows)


def test_a_field_that_no_row_has_is_an_error(bench: Bench) -> None:
    """A field that is not there names those that are."""
    with pytest.raises(ConfigInvalid, match=r"time_split\.field: .* has no date") as error:
        bench.read(days(3), time_split={"field": "date"})
    assert "created_at" in error.value.hint


def test_a_malformed_row_needs_no_time(bench: Bench) -> None:
    """A row that is dropped anyway needs no time."""
    rows = [*days(20), {"messages": "?"}]
    assert bench.read(rows, time_split={"field": "created_at"}, max_bad_rows=0.5).rows.rows == 20


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31T13:00:00+01:00",
        "2026-01-31 12:00:00",
        "20260131T120000",
        1769860800,
        1769860800.0,
        1769860800000,
        "1769860800",
        "1769860800000",
    ],
)
def test_spellings_of_one_time(bench: Bench, value: Any) -> None:
    """ISO 8601 with and without a time zone, and Unix time as a number or a text, are one time."""
    made = bench.read([{**pair("x"), "t": value}], time_split={"field": "t"}).rows
    stored = int.from_bytes((bench.store.local(made) / "times").read_bytes(), "little")
    assert stored == 1769860800_000_000


def test_parquet_times(bench: Bench) -> None:
    """Times of Parquet are those of their ISO 8601."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    path = bench.directory / "rows.parquet"
    moments = [START, START + timedelta(days=1)]
    pyarrow.parquet.write_table(
        pyarrow.table({"question": ["a", "b"], "answer": ["c", "d"], "created_at": moments}), path
    )
    spec = DatasetSpec.model_validate({"path": str(path), "time_split": {"field": "created_at"}})
    made = curate(snapshot(str(path), scratch=bench.directory), spec, store=bench.store).rows
    own = [
        {"question": q, "answer": a, "created_at": t.isoformat()} for q, a, t in zip("ab", "cd", moments, strict=True)
    ]
    assert bench.read(own, time_split={"field": "created_at"}).rows == made


def test_split_files_are_those_of_a_run(bench: Bench) -> None:
    """`data split` writes what a run holds out by time."""
    path = str(bench.write(days(50)))
    spec = DatasetSpec.model_validate({"path": path, "time_split": {"field": "created_at", "last": 0.2}})
    out = bench.directory / "heldout.jsonl"
    source = snapshot(path, scratch=bench.directory)
    where: dict[str, Any] = {"heldout": out, "train": None, "counter": None, "store": bench.store}
    for share, expected in ((None, 10), (0.5, 25)):
        assert split_files(source, spec, share=share, **where).heldout_rows == expected
        assert all(f"Row {day}" in out.read_text() for day in range(50 - expected, 50))


def test_without_it_keys_are_what_they_were(bench: Bench) -> None:
    """A dataset without a time split has the key of before; the share is no part of the curation's key."""
    source = snapshot(__file__, scratch=Path())
    assert "time_split" not in DatasetSpec(path="a").semantic()

    def key(**split: Any) -> str:
        spec = DatasetSpec.model_validate({"path": "a", "time_split": split})
        return stage_key("curate", {"source": source, "spec": spec, "template": None})

    assert key(field="t", last=0.2) == key(field="t") != key(field="u")
    with pytest.raises(ValidationError, match="set one of them"):
        DatasetSpec.model_validate({"path": "a", "heldout": "b", "time_split": {"field": "t"}})
