"""What scores is trained in no run and no night, and an earlier run is scored on what it held out itself."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.data.row_files import load
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RowsRef, RunResult, Split
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, GateSpec, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.evaluate import evaluate
from flows.multi_run import multi_run
from flows.retrain import retrain
from flows.train import train
from tasks.runs.line_splits import held_by, of_run

SHORT = TrainSpec(steps=2, batch_size=4, learning_rate=1e-2, lora=LoraSpec(rank=4))
OPEN = GateSpec(max_drop=1, confidence=0.5)
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


def row(number: int) -> dict[str, list[dict[str, str]]]:
    said = {"user": f"What is {number} and 1?", "assistant": f"{number + 1}"}
    return {"messages": [{"content": text, "role": role} for role, text in said.items()]}


def write(place: Path, name: str, numbers: range) -> str:
    """A file of a row for each number."""
    (place / name).write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))
    return str(place / name)


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(settings().store_path)
    yield store
    store.close()


def rows_of(refs: list[RowsRef], store: Store) -> set[str]:
    return {json.dumps(row) for ref in refs for row in load(store.local(ref))}


def split_of(result: RunResult) -> Split:
    assert result.split
    return result.split


def sides(result: RunResult, store: Store) -> tuple[set[str], set[str]]:
    """The rows that a run trained, and those that score or are set aside."""
    rows = split_of(result)
    return (
        rows_of([one.train for one in rows.datasets], store),
        rows_of([*rows.heldout.values(), *rows.aside.values()], store),
    )


def test_no_dataset_trains_what_another_holds_out(base: Path, tmp_path: Path, store: Store) -> None:
    """In one multi-run, rows of a held-out file, of a watched set and of the other dataset's tenth train nothing."""
    first, second = (write(tmp_path, f"{name}.jsonl", range(60)) for name in ("first", "second"))
    own, watched = write(tmp_path, "own.jsonl", range(20, 30)), write(tmp_path, "seen.jsonl", range(45, 60))
    made = multi_run(
        [DatasetSpec(path=first), DatasetSpec(path=second, heldout=own)],
        model=str(base),
        training=SHORT,
        evaluation=EvaluationSpec(watch=[DatasetSpec(path=watched)]),
    )
    trained, scored = sides(made, store)
    assert made.evaluation and made.evaluation.tasks == ["first", "second", "seen"]
    assert not trained & scored and len(trained) + len(scored) == 60
    one, two = (run.dataset.not_trained for run in made.runs)
    assert two["watched"] == 15 >= one["watched"] > 5 and one["held_out_elsewhere"] >= 9 and two["held_out"] == 10
    assert [run.dataset.dropped for run in made.runs] == [{}, {}]


def test_a_line_never_scores_what_it_has_learned(base: Path, tmp_path: Path, store: Store) -> None:
    """A night with a held-out file, one without, and one with a file of learned rows: each row stays on its side."""
    data, own = write(tmp_path, "one.jsonl", range(60)), write(tmp_path, "own.jsonl", range(100, 112))
    again, learned = write(tmp_path, "two.jsonl", range(150)), write(tmp_path, "learned.jsonl", range(40))
    nights = [
        retrain("line", DatasetSpec(path=path, heldout=heldout), str(base), SHORT, gate=OPEN)
        for path, heldout in [(data, own), (again, None), (write(tmp_path, "3.jsonl", range(150, 190)), learned)]
    ]
    trained, held = set[str](), set[str]()
    for night in nights:
        assert night.status in ("finished", "rejected"), night.error
        new, scored = sides(night, store)
        held |= scored
        assert not (trained | new) & held
        if night.status == "finished":
            assert not new & trained
            trained |= new
    version = Lines(store).live("line")
    assert version and version.version.aside is not None
    assert rows_of(held_by("line", version, store)["line"], store) <= held


def test_an_earlier_run_is_scored_on_what_it_held_out(
    base: Path, tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """`evaluate` with a larger cap scores no row more, with a smaller one the first; neither reads the data again.

    On other rows it says how many of them were trained.
    """
    data = write(tmp_path, "data.jsonl", range(200))
    made = train(data, model=str(base), training=SHORT, evaluation=EvaluationSpec(heldout_max=6))
    Path(data).unlink()
    assert of_run(made.run_id, store) == made.split
    for cap, rows in ((500, 6), (4, 4)):
        again = evaluate(made.run_id, evaluation=EvaluationSpec(heldout_max=cap))
        scored = [stage for stage in again.stages if stage.stage == "evaluate"]
        assert len(scored) == 2 and all(stage.cached for stage in scored) == (rows == 6)
        assert "curate" not in [stage.stage for stage in again.stages]
    evaluate(made.run_id, [write(tmp_path, "other.jsonl", range(195, 205))], EvaluationSpec(heldout_max=500))
    trained = len(
        rows_of([split_of(made).datasets[0].train], store) & {json.dumps(row(number)) for number in range(195, 205)}
    )
    assert f"other: {trained} of these 10 rows were trained" in caplog.text
