"""Preferences in runs and lines: trained, held out, gated, counted; and kept apart where no loss is set."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.row_files import load
from backprop_core.errors import ConfigInvalid, NoRows
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    BenchSpec,
    DatasetSpec,
    EarlyStopping,
    EvaluationSpec,
    ExportSpec,
    GateSpec,
    GenerationSpec,
    LoraSpec,
    MergeSpec,
    PreferenceSpec,
    RunSpec,
    TrainSpec,
)
from backprop_core.schema.specs.training import ModelSpec
from backprop_core.store.artifacts import Store
from flows.bench import bench
from flows.multi_run import multi_run
from flows.pipeline import pipeline
from flows.promote import promote
from flows.rebase import rehearsed
from flows.retrain import retrain
from flows.train import train
from tasks.runs.plan import plan, planned
from tasks.runs.rebase import moved
from tasks.runs.resolve_bench import of_line
from tests.backprop_core import nano

LORA = LoraSpec(rank=8)
PLAIN = TrainSpec(steps=6, batch_size=8, learning_rate=1e-2, lora=LORA)
JUDGED = PLAIN.model_copy(update={"steps": 24, "preference": PreferenceSpec(loss="dpo")})
OPEN = GateSpec(max_drop=1, confidence=0.5)
JUDGING = "support.preferences"
Rows = list[dict[str, Any]]
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests: they share what is cached."""
    return shared_home


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(settings().store_path)
    yield store
    store.close()


def answers(numbers: range) -> Rows:
    return [{"prompt": f"Is {number} a number?", "completion": "It is."} for number in numbers]


def pairs(numbers: range) -> Rows:
    return [{"prompt": f"Say {number}", "chosen": "No!", "rejected": "Yes."} for number in numbers]


def thumbs(numbers: range) -> Rows:
    return [{"prompt": f"Tell {n}", "completion": "Yes." if n % 2 else "No!", "label": n % 2 == 0} for n in numbers]


def write(place: Path, rows: Rows, name: str = "rows.jsonl") -> DatasetSpec:
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetSpec(path=str(place / name), format="mixed")


def stages(result: RunResult) -> list[str]:
    return [stage.stage for stage in result.stages]


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory, home: Path, prefect: None) -> RunResult:
    """The first version of the line `support`, of answers alone."""
    data = write(tmp_path_factory.mktemp("night"), answers(range(120)))
    return retrain("support", data, model=str(base), training=PLAIN)


@pytest.fixture(scope="module")
def second(first: RunResult, base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Its second version, of preferences alone."""
    data = write(tmp_path_factory.mktemp("night"), [*pairs(range(120)), *thumbs(range(20))])
    return retrain("support", data, model=str(base), training=JUDGED, gate=OPEN)


def test_a_night_of_preferences_alone(first: RunResult, second: RunResult, store: Store) -> None:
    """A line continues on preferences, compared with its champion; they score beside its task, and are gated."""
    assert (first.status, first.version, second.status, second.version) == ("finished", 1, "finished", 2), second.reason
    [made] = second.runs
    assert made.dataset.pairs and made.dataset.ratings and made.dataset.dropped == {}
    assert made.dataset.train_rows == made.dataset.pairs + made.dataset.ratings
    assert second.evaluation and second.evaluation.tasks == ["support", JUDGING]
    [_, row] = second.evaluation.matrix
    assert row[1] is not None and row[1] > 0.9
    assert second.gate and {one.task for one in second.gate.tasks} == {"support", JUDGING}
    assert "reference_log_probs" in stages(second) and "reference_log_probs" not in stages(first)
    record = Lines(store).version("support", 2)
    assert set(record.heldout) == {"support", JUDGING}


@pytest.mark.parametrize("known", [0, 120])
def test_early_stopping_needs_answers(second: RunResult, base: Path, tmp_path: Path, store: Store, known: int) -> None:
    """A night that trains preferences alone trains all its steps, also where the file has the answers that the line
    knows; no answer chooses, so all held-out rows score."""
    hasty = JUDGED.model_copy(update={"early_stopping": EarlyStopping(eval_steps=1, patience=1), "steps": 8})
    rows = [*answers(range(known)), *pairs(range(300 + known, 360 + known))]
    night = retrain("support", write(tmp_path, rows), model=str(base), training=hasty, gate=OPEN)
    assert (night.runs[0].kept, night.runs[0].steps) == (None, 8)
    assert night.runs[0].dataset.train_rows == night.runs[0].dataset.pairs > 0
    assert "apart" not in stages(night)


def test_later_nights_keep_the_preferences(second: RunResult, base: Path, tmp_path: Path, store: Store) -> None:
    """A night of answers is scored on them too, trains no answer of them, and stages no reference."""
    held = load(store.local(Lines(store).version("support", 2).heldout[JUDGING]))
    [giving] = [row for row in held if "chosen" in row][:1]
    said = {"messages": [*giving["messages"], *giving["rejected"]]}
    data = write(tmp_path, [*answers(range(200, 280)), said])
    night = retrain("support", data, model=str(base), training=PLAIN, gate=OPEN)
    assert night.evaluation and night.evaluation.tasks == ["support", JUDGING]
    assert night.runs[0].dataset.not_trained["in_held_out_preference"] == 1
    assert "reference_log_probs" not in stages(night)
    other = ModelSpec(name=str(nano.build(tmp_path / "other", seed=1)))
    more = write(tmp_path, answers(range(60)), "later.jsonl").model_copy(update={"task": "support"})
    later = train(more, model=str(base), training=PLAIN)
    promote(later.run_id, "support", force=True, reason="better or not")
    with pytest.raises(ConfigInvalid, match=r"line support have preferences .*training\.preference\.loss is not set"):
        moved("support", other, {}, store)
    with pytest.raises(ConfigInvalid, match="line support have preferences"):
        of_line("support", BenchSpec(), store)
    assert moved("support", other, {"training": TrainSpec(preference=PreferenceSpec(loss="dpo"))}, store).base


def test_a_row_that_was_learned_and_is_held_out(second: RunResult, tmp_path: Path, store: Store) -> None:
    """A line of an older checkout that holds out an answer of a trained pair is rebased without the pair."""
    lines = Lines(store)
    version = lines.version("support", 2)
    trained = version.datasets[-1]
    pair = next(row for row in load(store.local(trained.train)) if "chosen" in row)
    said = nano.commit_rows(store, [{"messages": [*pair["messages"], *pair["chosen"]]}])
    lines.append("clash", version.model_copy(update={"heldout": {**version.heldout, "clash": said}}), after=0)
    lines.set_champion("clash", 1)
    given = {"training": TrainSpec(preference=PreferenceSpec(loss="dpo"))}
    start = partial(moved, "clash", ModelSpec(name=str(nano.build(tmp_path / "other", seed=1))), given)
    left = planned(start, rehearsed, fresh=False).rows[-1]
    assert (left.train, left.pairs) == (trained.train.rows - 1, trained.pairs - 1)
    assert left.ratings == trained.ratings > 0


def test_watched_preferences_are_not_scored(base: Path, tmp_path: Path) -> None:
    """A watched file of preferences alone is refused by that reason, also where a loss is set."""
    watch = write(tmp_path, pairs(range(30)), "judged.jsonl")
    data = write(tmp_path, answers(range(60)))
    with pytest.raises(NoRows, match="watched preferences are not scored"):
        train(data, model=str(base), training=JUDGED, evaluation=EvaluationSpec(watch=[watch]))


def test_without_a_loss_they_are_kept_apart(base: Path, tmp_path: Path) -> None:
    """Beside answers they are counted, alone they are refused with what to set."""
    made = train(write(tmp_path, [*answers(range(60)), *pairs(range(30))]), model=str(base), training=PLAIN)
    assert made.runs[0].dataset.dropped == {"preferences": 30} and made.runs[0].dataset.pairs == 0
    assert made.evaluation and len(made.evaluation.tasks) == 1
    with pytest.raises(NoRows, match="only preferences, which are not trained"):
        train(write(tmp_path, pairs(range(30)), "judged.jsonl"), model=str(base), training=PLAIN)


def test_a_loss_without_preferences_is_no_part_of_the_key(base: Path, tmp_path: Path) -> None:
    """Rows without preferences are the same training, whatever loss preferences would have."""
    data = write(tmp_path, answers(range(60)), "plain.jsonl")
    without = train(data, model=str(base), training=PLAIN)
    spec = PLAIN.model_copy(update={"preference": PreferenceSpec(loss="kto")})
    again = train(data, model=str(base), training=spec)
    keys = [[stage.key for stage in made.stages if stage.stage in ("split", "train")] for made in (without, again)]
    assert keys[0] == keys[1] and again.runs[0].cached


def test_mixed_rows_with_a_metric_of_answers(base: Path, tmp_path: Path) -> None:
    """Where answers are rated, preferences keep their own accuracy; replay trains those of an earlier dataset again."""
    data = [write(tmp_path, [*answers(range(n, n + 60)), *pairs(range(n, n + 60))], f"{n}.jsonl") for n in (0, 100)]
    made = multi_run(
        data,
        model=str(base),
        training=JUDGED.model_copy(update={"replay": 0.1, "steps": 6}),
        evaluation=EvaluationSpec(metric="token_f1", generation=GenerationSpec(max_new_tokens=4), heldout_max=10),
    )
    assert made.evaluation and made.evaluation.tasks == ["0", "0.preferences", "100", "100.preferences"]
    judged = [row[1] for row in made.evaluation.scores]
    assert judged == [row[1] for row in made.evaluation.matrix]
    assert stages(made).count("reference_log_probs") == 2


def test_a_comparison_judges_in_every_cell(base: Path, tmp_path: Path) -> None:
    """All datasets at once train preferences as preferences, although the first dataset has none."""
    night = [
        write(tmp_path, rows, name) for rows, name in ((answers(range(60)), "a.jsonl"), (thumbs(range(60)), "b.jsonl"))
    ]
    made = bench(
        datasets=night,
        compare=BenchSpec(strategies=["slao"], replay=[0], orders=1),
        model=str(base),
        training=JUDGED.model_copy(update={"steps": 2}),
        merge=MergeSpec(strategy="slao"),
    )
    assert made.bench and [result.order for result in made.bench.results] == [0, None]
    assert stages(made).count("reference_log_probs") == 2


def test_files_of_a_run_of_preferences(base: Path, tmp_path: Path) -> None:
    """A run of preferences alone is exported, and its file answers their questions as the model does."""
    made = train(
        write(tmp_path, pairs(range(40))),
        model=str(base),
        training=JUDGED.model_copy(update={"steps": 4}),
        export=ExportSpec(quantizations=["f16"]),
    )
    assert made.gguf and made.gguf[0].bytes


def test_a_plan_counts_them(base: Path, tmp_path: Path) -> None:
    """What would be trained and what would score, by kind; and the stage that would be computed before."""
    data = write(tmp_path, [*answers(range(60)), *pairs(range(40)), *thumbs(range(20))])
    spec = RunSpec(model=ModelSpec(name=str(base)), datasets=[data], training=JUDGED)
    found = plan("train", spec, pipeline, fresh=False)
    [rows] = found.rows
    assert rows.pairs + rows.ratings + rows.heldout_preferences == 60 and rows.heldout_preferences >= 5
    assert rows.train + rows.heldout + rows.heldout_preferences == 120
    assert "reference_log_probs" in [stage.stage for stage in found.stages]
