"""A line that takes as much of a night as is safe, and a gate that is asked whether a version is worse."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from backprop_core.data.row_sets import SEARCH_SHARE
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, GateSpec, LoraSpec, MergeSpec, ModelSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.cli import run_here, tables
from flows.multi_run import multi_run
from flows.retrain import retrain
from tasks.runs.plan import Plan
from tests.flows.test_retrain import batch

LORA = LoraSpec(rank=8)
GOOD = TrainSpec(steps=24, batch_size=8, learning_rate=1e-2, lora=LORA)
SHORT = GOOD.model_copy(update={"steps": 6})
IDLE = GOOD.model_copy(update={"steps": 2, "learning_rate": 1e-9})
OPEN = GateSpec(max_drop=1)
BACKS_OFF = MergeSpec(back_off=True)
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests: they share what is cached."""
    return shared_home


@pytest.fixture(scope="module")
def lines(home) -> Lines:
    return Lines(Store(settings().store_path))


@pytest.fixture(scope="module")
def first(base, tmp_path_factory, home, prefect) -> RunResult:
    """The first version of the line `careful`."""
    night = batch(tmp_path_factory.mktemp("night"), 1)
    return retrain("careful", night, model=str(base), training=SHORT, merge=BACKS_OFF, gate=OPEN)


def shown(plan: Plan) -> str:
    """A plan as it is printed on a wide terminal."""
    console = Console(file=io.StringIO(), width=250)
    console.print(tables.plan(plan))
    return console.file.getvalue()


def called(result: RunResult, stage: str) -> int:
    return [one.stage for one in result.stages].count(stage)


def test_as_much_is_taken_as_is_safe(first, lines, tmp_path):
    """A good night is tried whole and in part on rows that score nothing; a shuffled one is taken as little as can be.

    What was taken is in the result and the version; the next run starts from what was tuned, whole.
    """
    assert (called(first, "back_off"), first.gate.taken, first.runs[0].taken) == (0, None, None)
    good = retrain("careful", batch(tmp_path, 2), training=GOOD, gate=OPEN)
    assert good.status == "finished" and called(good, "back_off") == 1
    assert good.gate.taken == good.runs[0].taken >= 0.5
    assert good.gate.reason.endswith(f"; {good.gate.taken:.0%} of the run's change was taken")
    live = lines.live("careful").version
    assert live.gate == good.gate and live.merged.digest == good.runs[0].merged.digest
    assert live.tuned.digest == good.runs[0].tuned.digest
    [whole], [scored] = live.heldout.values(), live.scores.values()
    assert whole.rows * (1 - 2 / SEARCH_SHARE) < scored.rows < whole.rows
    poisoned = retrain("careful", batch(tmp_path, 4, poisoned=True), training=GOOD)
    assert poisoned.runs[0].taken == 0.25 and "; 25% of the run's change was taken" in poisoned.gate.reason


def test_back_off_may_change_from_run_to_run(first, lines, tmp_path):
    """Left out, it is as in the run behind the champion; `false` turns it off, and all held-out rows score again."""
    off = MergeSpec(back_off=False)
    without = retrain("careful", batch(tmp_path, 5), training=SHORT, merge=off, gate=OPEN)
    assert called(without, "back_off") == 0 and without.gate.taken is None
    again = retrain("careful", batch(tmp_path, 6), training=GOOD, merge=BACKS_OFF, gate=OPEN)
    assert called(again, "back_off") == 1
    if without.status == "finished":
        assert lines.version("careful", without.version).merge.back_off is False


def test_the_runs_of_a_multi_run_back_off_too(base, home, tmp_path):
    """Each run after the first is taken as far as the tasks so far bear it."""
    nights = [DatasetSpec(path=batch(tmp_path, number)) for number in (21, 22)]
    result = multi_run(nights, model=str(base), training=SHORT, merge=BACKS_OFF)
    assert [record.taken is None for record in result.runs] == [True, False]
    assert called(result, "back_off") == 1


def test_what_learned_nothing_is_not_worse(first, tmp_path, caplog):
    """A run that changes nothing is refused as not better, and goes live as not worse; the plan says what can show."""
    plain_merge = {"merge": MergeSpec(strategy="sequential"), "training": IDLE}
    retrain("idle", batch(tmp_path, 11), model=first.base.name, merge=plain_merge["merge"], training=GOOD, gate=OPEN)
    asked = GateSpec(question="not_worse", margin=0.5)
    spec = RunSpec(
        line="idle",
        model=ModelSpec(),
        datasets=[DatasetSpec(path=batch(tmp_path, 12))],
        gate=asked,
        **plain_merge,
    )
    plan = run_here.plan("retrain", spec, fresh=False)
    assert plan.power.question == "not_worse" and plan.power.known and 0 < plan.power.difference < 0.5
    assert plan.power.sentence in shown(plan)
    assert json.loads(plan.model_dump_json())["power"]["rows"] == plan.rows[0].heldout
    refused = retrain("idle", batch(tmp_path, 12), **plain_merge)
    assert refused.status == "rejected" and refused.gate.question == "better"
    with caplog.at_level(logging.INFO):
        taken = retrain("idle", batch(tmp_path, 12), gate=asked, **plain_merge)
    assert taken.status == "finished" and taken.gate.reason.startswith("not worse on average: +0.0 points")
    assert plan.power.sentence in caplog.text
