"""What a file's rows are like is measured on a sample, and of JSON lines nothing else is parsed for it."""

import cProfile
import json
import pstats
from pathlib import Path

import pytest

from backprop_core.data.format_detection import DETECTED_FROM
from backprop_core.data.loading import good_rows, snapshot
from backprop_core.data.row_identity import identity
from backprop_core.data.row_sample import sampled
from backprop_core.data.token_lengths import MOST_ROWS, sample
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec

MANY = 12_000


def source(folder: Path, lines: list[str], name: str = "rows.jsonl") -> tuple[SourceRef, DatasetSpec]:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines))
    return snapshot(str(path), scratch=folder), DatasetSpec(path=str(path))


def line(number: int) -> str:
    return json.dumps({"prompt": f"question {number}", "completion": f"answer {number}"})


def test_only_what_is_drawn_is_parsed(tmp_path: Path) -> None:
    """Beyond the rows that show the format, a JSON line that is not drawn is not parsed; the draw is the same."""
    found, spec = source(tmp_path, list(map(line, range(MANY))))
    with cProfile.Profile() as profile:
        rows, count = sampled(found, spec)
    calls = {name: total for (_, _, name), (_, total, *_) in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    assert DETECTED_FROM <= calls["utf8_value"] <= DETECTED_FROM + MOST_ROWS < MANY
    assert (rows, count) == sample(good_rows(found, spec), lambda row: row)


def test_malformed_rows_are_estimated(tmp_path: Path) -> None:
    """How many rows are usable is an estimate by the sample; curation counts them."""
    found, spec = source(tmp_path, [line(number) if number % 100 else "{" for number in range(MANY)])
    rows, count = sampled(found, spec)
    assert len(rows) < MOST_ROWS and count == pytest.approx(0.99 * MANY, rel=0.01)


def test_too_many_malformed_rows_of_a_small_file(tmp_path: Path) -> None:
    """If all rows are drawn, or none is usable, what curation would refuse is refused."""
    for lines in ([line(1), "{", "{"], [line(1), *["{"] * MANY]):
        with pytest.raises(InputValidationFailed, match="malformed"):
            sampled(*source(tmp_path, lines))


def test_forgotten_rows_are_not_drawn(tmp_path: Path) -> None:
    """A row that was forgotten is not measured."""
    found, spec = source(tmp_path, list(map(line, range(9))))
    every = list(good_rows(found, spec))
    gone = found.model_copy(update={"forgotten": [identity(every[3]).hex()]})
    rows, count = sampled(gone, spec)
    assert count == 8 and every[3] not in rows and len(rows) == 8
