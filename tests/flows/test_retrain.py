"""A line that goes on: from its champion, through the gate, never worse."""

import json
import random
import re
import threading
from pathlib import Path

import pytest

from backprop_core.errors import LineConflict
from backprop_core.lines import Lines
from backprop_core.refs import RunResult
from backprop_core.settings import settings
from backprop_core.specs import (
    CanarySpec,
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    GateSpec,
    GenerationSpec,
    LoraSpec,
    MergeSpec,
    TrainSpec,
)
from backprop_core.store import Store
from flows.evaluate import evaluate
from flows.multi_run import multi_run
from flows.promote import promote
from flows.retrain import retrain
from flows.train import train
from tasks.line import summaries

LORA = LoraSpec(rank=8)
GOOD = TrainSpec(steps=24, batch_size=8, learning_rate=1e-2, lora=LORA)
SHORT = GOOD.model_copy(update={"steps": 6})
IDLE = GOOD.model_copy(update={"steps": 2, "learning_rate": 1e-9})
OPEN = GateSpec(max_drop=1)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
pytestmark = pytest.mark.usefixtures("prefect", "home")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for these tests: they share what is cached."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        yield home


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
    """Of two runs of a line at once the second waits and finds all done; what learned nothing does not go live."""
    plain = MergeSpec(strategy="sequential")  # SLAO's start moves an adapter that learns nothing, too
    retrain("plain", batch(tmp_path, 1), model=str(base), training=SHORT, merge=plain)
    path, results = batch(tmp_path, 6), []
    threads = [threading.Thread(target=lambda: results.append(retrain("plain", path, training=IDLE))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result.status == "rejected" and not result.gate.accepted and not result.runs[0].accepted
        assert "not above" in result.gate.reason and result.version == 1 == lines.champion("plain")
    assert [all(stage.cached for stage in result.stages) for result in results] == [False, True]


def test_a_killed_advance_is_finished_by_the_same_run(first, lines):
    """A version that was appended but not made live becomes live when its run goes on, without a second version."""
    version = lines.version("support", 1).model_copy(update={"run_id": "e" * 32, "parent": 1})
    number = lines.append("other", lines.version("support", 1), after=0)
    lines.set_champion("other", number)
    lines.append("other", version, after=1)  # and here it was killed
    assert lines.add("other", version, champion=1) == 2
    assert lines.versions("other") == [1, 2]
    lines.set_champion("other", 2)
    with pytest.raises(LineConflict, match="went on to version 2"):
        lines.add("other", version.model_copy(update={"run_id": "f" * 32}), champion=1)


def test_promote_makes_a_line_of_a_candidate(base, data, lines):
    """What a multi-run made becomes a line's champion at no cost; a retrain goes on from there with all its tasks."""
    made = multi_run(
        [DatasetSpec(path=path) for path in data[:2]],
        model=str(base),
        training=TrainSpec(steps=2, batch_size=8, lora=LORA),
    )
    live = promote(made.run_id[:8], "mixed")
    assert (live.status, live.version, live.merged) == ("finished", 1, made.merged)
    assert all(stage.cached for stage in live.stages)
    version = lines.live("mixed").version
    assert (version.count, sorted(version.heldout), version.parent) == (2, ["task0", "task1"], None)
    more = retrain("mixed", data[2], training=TrainSpec(steps=2, batch_size=8, lora=LORA))
    assert more.evaluation.tasks == ["task0", "task1", "mixed"] and len(more.evaluation.matrix) == 2
    assert "mixed" in [line["line"] for line in summaries(settings())]


def test_a_line_that_began_with_pissa_goes_on_as_plain_lora(base, data, lines):
    """What PiSSA made is an ordinary adapter of twice the rank: a line continues it as one, and as nothing else."""
    short = {"steps": 2, "batch_size": 8}
    pissa = TrainSpec(**short, lora=LoraSpec(rank=4, alpha=8, variant="pissa"))
    promote(train(data[0], model=str(base), training=pissa).run_id, "principal")
    assert lines.live("principal").version.lora == LoraSpec(rank=8, alpha=16)
    with pytest.raises(LineConflict, match="pissa"):
        retrain("principal", data[1], training=pissa)
    assert retrain("principal", data[1], training=TrainSpec(**short)).spec["training"]["lora"]["rank"] == 8


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
