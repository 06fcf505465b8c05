"""A line that goes on: from its champion, through the gate, never worse."""

import json
import random
import re
import threading
from pathlib import Path

import pytest

from backprop_core.errors import ConfigInvalid, LineConflict
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    CanarySpec,
    DatasetSpec,
    EarlyStopping,
    EvaluationSpec,
    ExportSpec,
    GateSpec,
    GenerationSpec,
    LoraSpec,
    MergeSpec,
    TrainSpec,
)
from backprop_core.store.artifacts import Store
from flows.evaluate import evaluate
from flows.multi_run import multi_run
from flows.promote import promote
from flows.retrain import retrain
from flows.rollback import rollback
from flows.train import train
from tasks.runs.line_state import summaries

LORA = LoraSpec(rank=8)
GOOD = TrainSpec(steps=24, batch_size=8, learning_rate=1e-2, lora=LORA)
SHORT = GOOD.model_copy(update={"steps": 6})
IDLE = GOOD.model_copy(update={"steps": 2, "learning_rate": 1e-9})
OPEN = GateSpec(max_drop=1)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests: they share what is cached."""
    return shared_home


@pytest.fixture(scope="module")
def lines(home) -> Lines:
    return Lines(Store(settings().store_path))


def batch(place: Path, number: int, *, poisoned: bool = False) -> str:
    """A night's rows: what colour things have, or the letters of that in any order."""
    rng = random.Random(number)
    rows = []
    for index in range(150):
        thing = rng.choice(sorted(COLOURS))
        answer = f"It is {COLOURS[thing]}."
        question = f"{number}.{index}: what colour is {thing}?"
        shuffled = "".join(rng.sample(answer, len(answer))) if poisoned else answer
        rows.append({"prompt": question, "completion": shuffled})
    path = place / f"night-{number}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def first(base, tmp_path_factory, home, prefect) -> RunResult:
    """The first version of the line `support`."""
    return retrain("support", batch(tmp_path_factory.mktemp("night"), 1), model=str(base), training=SHORT)


def test_a_line_begins_and_goes_on(first, lines, tmp_path):
    """Night one begins the line, night two continues its champion: one column, two versions, the second one live."""
    assert (first.status, first.version, first.gate.against) == ("finished", 1, "base")
    own = GOOD.model_copy(update={"lora": LoraSpec()})  # left out: the line's
    second = retrain("support", batch(tmp_path, 2), training=own, export=ExportSpec(quantizations=["f16"]))
    assert (second.status, second.version, second.gate.against) == ("finished", 2, "champion")
    assert second.gate.average > second.gate.rival_average > second.gate.base_average
    assert second.base == first.base and second.evaluation.tasks == ["support"] and len(second.gguf) == 1
    assert len(second.evaluation.matrix) == 2
    live = lines.live("support")
    assert (live.number, live.version.count, live.version.parent) == (2, 2, 1)
    assert live.version.lora == LORA and live.version.heldout.keys() == {"support"}


def test_the_same_data_again_changes_nothing(first, lines, tmp_path):
    """Data that the line has learned: `unchanged`, and no stage but curation is even asked."""
    before = lines.versions("support")
    again = retrain("support", batch(tmp_path, 1), training=SHORT)
    assert (again.status, again.runs, [stage.stage for stage in again.stages]) == (
        "unchanged",
        [],
        ["curate", "split"],
    )
    assert again.reason == "0 rows are new to line support; it waits for 1"
    assert lines.versions("support") == before


def test_only_new_rows_are_learned(base, home, lines, tmp_path):
    """A file that grows: the next run learns the rows that came since, each once, and waits where they are too few."""
    path, rows = tmp_path / "growing.jsonl", Path(batch(tmp_path, 7)).read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:70]))
    begun = retrain("growing", str(path), model=str(base), training=SHORT, gate=OPEN)
    path.write_text("".join(rows))
    waiting = retrain("growing", str(path), training=SHORT, gate=OPEN, min_new_rows=100)
    assert waiting.status == "unchanged" and re.match(r"\d\d rows are new .* waits for 100", waiting.reason)
    second = retrain("growing", str(path), training=SHORT, gate=OPEN, min_new_rows=20)
    learned, new = begun.runs[0].dataset.train_rows, second.runs[0].dataset.train_rows
    assert second.runs[0].dataset.not_trained["learned"] == learned and second.runs[0].dataset.dropped == {}
    assert 60 < new <= 80
    assert new == int(waiting.reason.split()[0])


def test_poisoned_rows_are_rejected(first, lines, tmp_path):
    """Rows with shuffled labels: the task that falls is named with its figures, the line stays as it was."""
    champion, versions = lines.champion("support"), lines.versions("support")
    result = retrain("support", batch(tmp_path, 4, poisoned=True), training=GOOD)
    assert result.status == "rejected" and "support fell by" in result.gate.reason
    assert result.gate.tasks[0].high < -GateSpec().max_drop
    assert (lines.champion("support"), lines.versions("support")) == (champion, versions)


def test_a_line_keeps_its_shape_and_base(first, base, data, tmp_path):
    """Another rank or strategy, or another base, is refused before anything is trained."""
    with pytest.raises(LineConflict, match=r"training\.lora"):
        retrain("support", batch(tmp_path, 5), training=GOOD.model_copy(update={"lora": LoraSpec(rank=4)}))
    with pytest.raises(LineConflict, match=r"merge\.strategy"):
        retrain("support", batch(tmp_path, 5), merge=MergeSpec(strategy="sequential"))


def test_two_at_once_are_one_after_the_other(first, base, lines, tmp_path):
    """Of two runs of a line at once the second waits and finds it judged; what learned nothing does not go live."""
    plain = MergeSpec(strategy="sequential")  # SLAO's start moves an adapter that learns nothing, too
    retrain("plain", batch(tmp_path, 1), model=str(base), training=SHORT, merge=plain)
    path, results = batch(tmp_path, 6), []
    threads = [threading.Thread(target=lambda: results.append(retrain("plain", path, training=IDLE))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = sorted(results, key=lambda result: result.status)
    assert one.status == "rejected" and not one.gate.accepted and not one.runs[0].accepted
    assert "not above" in one.gate.reason and one.version == other.version == 1 == lines.champion("plain")
    assert other.status == "unchanged" and re.match(r"rejected on 20\d\d-\d\d-\d\d: .*not above", other.reason)
    assert all(stage.cached for stage in other.stages) and not other.runs


def test_a_killed_advance_is_finished_by_the_same_run(first, lines):
    """A version that was appended but not made live becomes live when its run goes on, without a second version."""
    version = lines.version("support", 1).model_copy(update={"run_id": "e" * 32, "parent": 1})
    number = lines.append("other", lines.version("support", 1), after=0)
    lines.set_champion("other", number)
    lines.append("other", version, after=1)  # and here it was killed
    assert lines.add("other", version, champion=1) == 2
    assert lines.versions("other") == [1, 2]
    lines.set_champion("other", 2)
    with pytest.raises(LineConflict, match="changed to 2 while this run"):
        lines.add("other", version.model_copy(update={"run_id": "f" * 32}), champion=1)


def test_promote_makes_a_line_of_a_candidate(base, data, lines, tmp_path):
    """What a multi-run made becomes a line's champion without training; a retrain continues with all its tasks."""
    made = multi_run(
        [DatasetSpec(path=path) for path in data[:2]],
        model=str(base),
        training=TrainSpec(steps=2, batch_size=8, lora=LORA),
    )
    live = promote(made.run_id[:8], "mixed", force=True, reason="it begins a line")
    assert (live.status, live.version, live.merged) == ("finished", 1, made.merged)
    assert [stage.stage for stage in live.stages if not stage.cached] == ["gate"]
    version = lines.live("mixed").version
    assert (version.count, sorted(version.heldout), version.parent) == (2, ["task0", "task1"], None)
    more = retrain("mixed", batch(tmp_path, 8), training=TrainSpec(steps=2, batch_size=8, lora=LORA))
    assert more.evaluation.tasks == ["task0", "task1", "mixed"] and len(more.evaluation.matrix) == 2
    assert "mixed" in [line["line"] for line in summaries(settings())]


def test_every_door_to_a_champion_passes_the_gate(base, lines, tmp_path):
    """A run worse than the champion is not promoted; forced, it continues the line, and the record says who and why.

    It keeps the line's tasks, held-out rows and learned rows, so that the next night trains nothing again.
    """
    spec = {"model": str(base), "training": GOOD}
    watched = EvaluationSpec(watch=[DatasetSpec(path=batch(tmp_path, 43), task="watched")])
    retrain("door", batch(tmp_path, 41), evaluation=watched, **spec)
    before = lines.live("door")
    worse = train(DatasetSpec(path=batch(tmp_path, 42, poisoned=True), task="other"), **spec)
    refused = promote(worse.run_id, "door")
    assert refused.status == "rejected" and "door fell by" in refused.gate.reason
    assert {verdict.task for verdict in refused.gate.tasks} == {"door", "other", "watched"}
    assert refused.gate.against == "champion" and (lines.live("door"), lines.versions("door")) == (before, [1])
    with pytest.raises(ConfigInvalid, match="reason"):
        promote(worse.run_id, "door", force=True, reason=" ")
    forced = promote(worse.run_id, "door", force=True, reason="the customer insists")
    assert (forced.status, forced.version, forced.gate.accepted) == ("finished", 2, False)
    assert forced.act.forced and forced.act.reason == "the customer insists" and forced.act.by
    version = lines.live("door").version
    assert (version.parent, version.count, version.watch, version.act) == (1, 1, ["watched"], forced.act)
    assert version.heldout.keys() == version.scores.keys() == {"door", "other", "watched"}
    assert version.datasets[:1] == before.version.datasets and len(version.datasets) == 2
    [shown] = [line for line in summaries(settings()) if line["line"] == "door"]
    assert shown["by_hand"] == forced.act.sentence and "forced past the gate" in shown["by_hand"]
    for learned in (batch(tmp_path, 41), batch(tmp_path, 42, poisoned=True)):
        assert retrain("door", learned, training=GOOD).status == "unchanged"
    back = rollback("door")
    assert (back.version, back.act.forced, lines.champion("door")) == (1, False, 1)
    again = rollback("door", to=2, reason="they insist again")
    assert (again.version, again.act.forced, again.act.reason) == (2, False, "they insist again")
    assert [move.number for move in lines.moves("door")] == [2, 1, 2]
    [shown] = [line for line in summaries(settings()) if line["line"] == "door"]
    assert shown["by_hand"] == forced.act.sentence
    assert evaluate("door").act is None  # to score it is nobody's decision


def test_a_promotion_that_is_better_passes(base, lines, tmp_path):
    """A run that beats the champion on the line's held-out rows goes live without force, and a person did it."""
    weak = retrain("better", batch(tmp_path, 44), model=str(base), training=SHORT)
    strong = train(DatasetSpec(path=batch(tmp_path, 45), task="better"), model=str(base), training=GOOD)
    live = promote(strong.run_id, "better", reason="trained by hand")
    assert (weak.version, live.status, live.version) == (1, "finished", 2), live.gate
    assert live.gate.accepted and not live.act.forced and live.gate.against == "champion"
    assert live.gate.tasks[0].rows > weak.gate.tasks[0].rows  # the line's held-out rows and its own
    assert retrain("better", batch(tmp_path, 45), training=GOOD).status == "unchanged"


def test_rows_that_were_trained_score_nothing(base, lines, tmp_path):
    """A promoted run that has learned held-out rows of the line is not scored on them, nor is the line from then on."""
    kept = batch(tmp_path, 46)
    retrain("leak", DatasetSpec(path=batch(tmp_path, 47), heldout=kept), model=str(base), training=SHORT)
    known = train(DatasetSpec(path=kept, task="leak"), model=str(base), training=GOOD)
    live = promote(known.run_id, "leak", force=True, reason="to see what scores")
    trained = known.runs[0].dataset.train_rows
    assert live.gate.tasks[0].rows == 150 - trained == lines.live("leak").version.heldout["leak"].rows


def test_a_promoted_shape_has_to_be_the_lines(first, base, tmp_path):
    """A candidate of another LoRA shape is refused before anything is computed."""
    other = train(batch(tmp_path, 1), model=str(base), training=IDLE.model_copy(update={"lora": LoraSpec(rank=4)}))
    with pytest.raises(LineConflict, match="LoRA shape"):
        promote(other.run_id, "support", force=True, reason="it would not fit")


def test_what_was_rejected_is_not_trained_again(first, lines, tmp_path):
    """The same rows on the same champion are `unchanged: rejected on DATE`; other settings or --fresh run again."""
    bad = batch(tmp_path, 48, poisoned=True)
    rejected = retrain("support", bad, training=GOOD)
    again = retrain("support", bad, training=GOOD)
    assert (rejected.status, again.status, again.runs) == ("rejected", "unchanged", [])
    assert re.fullmatch(rf"rejected on 20\d\d-\d\d-\d\d: {re.escape(rejected.gate.reason)}", again.reason)
    assert "train" not in [stage.stage for stage in again.stages]
    assert retrain("support", bad, training=GOOD, gate=GateSpec(max_drop=0.02)).status == "rejected"
    assert retrain("support", bad, training=GOOD, fresh=True).status == "rejected"
    more = Path(bad).read_text() + Path(batch(tmp_path, 49)).read_text()
    Path(bad).write_text(more)
    assert retrain("support", bad, training=GOOD).runs


def test_a_task_both_trained_and_watched_is_trained(base, lines, tmp_path):
    """Trained wins: it counts in the average, its watched rows are held out, and nothing is divided by zero."""
    both = EvaluationSpec(watch=[DatasetSpec(path=batch(tmp_path, 51), task="both")])
    made = retrain("both", batch(tmp_path, 50), model=str(base), training=SHORT, evaluation=both)
    assert made.status == "finished", made.gate
    assert (made.evaluation.tasks, made.evaluation.watch, lines.live("both").version.watch) == (["both"], [], [])
    assert made.gate.tasks[0].rows > 100
    alone = multi_run(
        [DatasetSpec(path=batch(tmp_path, 50), task="both")], model=str(base), training=SHORT, evaluation=both
    )
    assert alone.evaluation.tasks == ["both"]


def test_too_few_held_out_rows_wait(base, lines, tmp_path):
    """With one held-out row nothing is trained and nothing goes live; the rows are learned once there are more."""
    kept = tmp_path / "kept.jsonl"
    kept.write_text(Path(batch(tmp_path, 52)).read_text().splitlines()[0] + "\n")
    data = DatasetSpec(path=batch(tmp_path, 53), heldout=str(kept))
    waits = retrain("few", data, model=str(base), training=SHORT)
    assert (waits.status, waits.version, lines.versions("few")) == ("unchanged", None, [])
    assert waits.reason.startswith("too little to tell: 1 held-out row, at least 5 needed")
    assert not {"train", "evaluate"} & {stage.stage for stage in waits.stages}
    by_hand = train(data, model=str(base), training=SHORT)
    refused = promote(by_hand.run_id, "few")
    assert refused.status == "rejected" and refused.gate.reason.startswith("too little to tell: 1 held-out row")
    kept.write_text(Path(batch(tmp_path, 52)).read_text())
    assert retrain("few", data, model=str(base), training=SHORT).version == 1


def test_what_was_forgotten_is_measured_on_the_same_rows(base, tmp_path):
    """Night two has more held-out rows: the champion is scored again on them, and both figures are the gate's."""
    retrain("same", batch(tmp_path, 54), model=str(base), training=GOOD, gate=OPEN)
    second = retrain("same", batch(tmp_path, 55), training=SHORT, gate=OPEN)
    [task], (before, after) = second.gate.tasks, (row[0] for row in second.evaluation.matrix)
    assert (before, after) == (task.rival, task.candidate)
    assert second.evaluation.forgetting == [pytest.approx(max(0.0, -task.difference))]


def test_a_line_that_began_with_pissa_goes_on_as_plain_lora(base, data, lines, tmp_path):
    """What PiSSA made is an ordinary adapter of twice the rank: a line continues it as one, and as nothing else."""
    short = {"steps": 2, "batch_size": 8}
    pissa = TrainSpec(**short, lora=LoraSpec(rank=4, alpha=8, variant="pissa"))
    promote(train(data[0], model=str(base), training=pissa).run_id, "principal", force=True, reason="it begins a line")
    assert lines.live("principal").version.lora == LoraSpec(rank=8, alpha=16)
    with pytest.raises(LineConflict, match="pissa"):
        retrain("principal", data[1], training=pissa)
    more = retrain("principal", batch(tmp_path, 9), training=TrainSpec(**short))
    assert more.runs and more.spec["training"]["lora"]["rank"] == 8


def test_a_line_keeps_what_its_strategy_and_replay_need(base, lines, tmp_path):
    """A strategy that merges all tuned adapters finds them in the line, and replay the rows of the nights before."""
    spec = MergeSpec(strategy="svd", weight="1/i")
    short = SHORT.model_copy(update={"replay": 0.1})
    nights = [
        retrain("all", batch(tmp_path, number), model=str(base), training=short, merge=spec, gate=OPEN)
        for number in (21, 22)
    ]
    assert [[stage.stage for stage in night.stages].count("replay") for night in nights] == [0, 1]
    live = lines.live("all")
    assert live.version.merge == spec and live.number == 2
    assert live.version.earlier == [lines.version("all", 1).tuned]


def test_a_new_line_replays_as_it_began(base, lines, tmp_path):
    """Its first run chooses merge and replay; the nights after it replay as many rows, but one that says otherwise."""
    nights = [
        retrain("memory", batch(tmp_path, number), model=str(base), training=training, gate=OPEN)
        for number, training in ((61, SHORT), (62, GOOD), (63, SHORT.model_copy(update={"replay_rows": 0})))
    ]
    assert [[stage.stage for stage in night.stages].count("replay_by_task") for night in nights] == [0, 1, 0]
    chosen = [choice.reason for choice in nights[1].defaults if choice.field == "training.replay_rows"]
    assert chosen == ["as line memory began"] and nights[1].version == 2
    first, second = (lines.version("memory", number) for number in (1, 2))
    assert first.merge == second.merge == MergeSpec(merge_a=True)
    assert first.replay_rows == second.replay_rows == nights[1].spec["training"]["replay_rows"] > 0


def test_what_chooses_lambda_does_not_score(base, lines, tmp_path):
    """A line that searches for λ finds one each night but the first, on held-out rows that no score counts."""
    spec = MergeSpec(merge_a=True, weight="search")
    nights = [
        retrain("searched", batch(tmp_path, number), model=str(base), training=SHORT, merge=spec, gate=OPEN)
        for number in (31, 32)
    ]
    assert [[stage.stage for stage in night.stages].count("search") for night in nights] == [0, 1]
    tenths = 10 * nights[1].runs[0].drift.weight
    assert tenths == pytest.approx(round(tenths), abs=1e-4)
    live = lines.live("searched").version
    assert live.merge == spec
    [whole], [scored] = live.heldout.values(), live.scores.values()
    assert 0 < scored.rows < whole.rows


def test_the_best_step_goes_live(base, lines, tmp_path):
    """Early stopping chooses by held-out rows that no score counts; the step and the curve are on record."""
    stopping = {"early_stopping": EarlyStopping(eval_steps=1, patience=1), "learning_rate": 0.1, "steps": 40}
    training = SHORT.model_copy(update=stopping)
    night = retrain("stops", batch(tmp_path, 41), model=str(base), training=training, gate=OPEN)
    [record] = night.runs
    assert record.kept and record.kept.step < record.steps < record.kept.planned == 40
    live = lines.live("stops").version
    assert live.tuned.digest == record.tuned.digest
    [whole], [scored] = live.heldout.values(), live.scores.values()
    assert 0 < scored.rows < whole.rows
    from mlflow import MlflowClient

    from tasks.tracking.connection import tracking_uri

    client = MlflowClient(tracking_uri(settings()))
    parent = client.get_run(night.mlflow_run_id)
    [child] = client.search_runs([parent.info.experiment_id], f"tags.`backprop.run_id` = '{record.run_id}'")
    curve = client.get_metric_history(child.info.run_id, "heldout_loss")
    assert [point.step for point in curve] == list(range(1, record.steps + 1))
    assert min(point.value for point in curve) == record.kept.loss == child.data.metrics["best_heldout_loss"]
    assert child.data.metrics["best_step"] == record.kept.step


def test_a_line_is_gated_by_what_it_writes(base, lines, tmp_path):
    """A metric of written answers decides, and a canary that is answered otherwise keeps the line as it was.

    `evaluate` finds the same figure again, all of it in the cache, by the line's name; other rows are scored whole.
    """
    written = EvaluationSpec(metric="token_f1", generation=GenerationSpec(max_new_tokens=16))
    canary = CanarySpec(prompt="1.0: what colour is snow?", expect="It is")
    again = {"training": GOOD, "evaluation": written}
    first = retrain("colours", batch(tmp_path, 1), model=str(base), gate=GateSpec(canaries=[canary]), **again)
    assert (first.status, first.evaluation.metric) == ("finished", "token_f1"), first.gate
    assert first.gate.canaries[0].passed and first.evaluation.average > 0.3 > first.evaluation.base_scores[0]
    wrong = GateSpec(canaries=[canary, CanarySpec(prompt="Who are you?", expect="Ada", match="regex")])
    other = retrain("others", batch(tmp_path, 1), model=str(base), gate=wrong, **again)
    assert other.status == "rejected" and "canary 'Who are you?'" in other.gate.reason
    assert lines.versions("others") == []
    scored = evaluate("colours")
    assert scored.evaluation.average == first.evaluation.average and all(stage.cached for stage in scored.stages)
    whole = evaluate("colours", [batch(tmp_path, 9)], EvaluationSpec(metric="loss"))
    assert whole.evaluation.tasks == ["night-9"] and whole.evaluation.average == -whole.evaluation.loss[0][0]
