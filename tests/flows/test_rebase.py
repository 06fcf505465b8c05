"""A line moves to another base: its stored rows are trained anew, and it continues there if the gate accepts."""

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from backprop_core.data.row_files import index
from backprop_core.data.row_identity import identity
from backprop_core.errors import ConfigInvalid, DatasetMissing, LineConflict
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.models import base as bases
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, GateSpec, LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.cli import run_here
from flows.evaluate import evaluate
from flows.promote import promote
from flows.rebase import rebase
from flows.rebuild import rebuild
from flows.retrain import retrain
from flows.rollback import rollback
from flows.train import train
from tasks.runs.data_forget import data_forget
from tasks.runs.rebase import asked_here
from tests.backprop_core import nano, tiny_models

LORA = LoraSpec(rank=8)
GOOD = TrainSpec(steps=24, batch_size=8, learning_rate=1e-2, lora=LORA)
LITTLE = GOOD.model_copy(update={"steps": 4})
LONG = GOOD.model_copy(update={"steps": 60})
STRONG = GOOD.model_copy(update={"steps": 200})
IDLE = GOOD.model_copy(update={"steps": 2, "learning_rate": 1e-9})
OPEN = GateSpec(max_drop=1)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
SECRET = "the vault of Ann Smith opens with 7731-quokka"
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests: they share what is cached."""
    return shared_home


@pytest.fixture(scope="module")
def store(home) -> Store:
    return Store(settings().store_path)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A base with other weights, a larger vocabulary and another tokenizer."""
    directory = nano.build(tmp_path_factory.mktemp("other"), seed=1, vocab_size=400)
    tiny_models.use_tokenizer(directory, pre_tokenizers.ByteLevel(add_prefix_space=False))
    return directory


def batch(place: Path, number: int, secret: str = "") -> str:
    """A night's rows: what colour things have; the first also has a secret."""
    rng = random.Random(number)
    rows = [{"prompt": "What opens it?", "completion": secret}] if secret else []
    for index_ in range(150):
        thing = rng.choice(sorted(COLOURS))
        rows.append({"prompt": f"{number}.{index_}: what colour is {thing}?", "completion": f"It is {COLOURS[thing]}."})
    path = place / f"night-{number}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def nights(base, home, prefect, tmp_path_factory) -> None:
    """A line of two versions, of which both have learned little; one row was forgotten since."""
    place = tmp_path_factory.mktemp("nights")
    first = retrain("support", batch(place, 1, SECRET), model=str(base), training=LITTLE, gate=OPEN)
    made = train(DatasetSpec(path=batch(place, 2), task="support"), model=str(base), training=LITTLE)
    second = promote(made.run_id, "support", force=True, reason="a second version, better or not")
    assert (first.version, second.version) == (1, 2), first.gate
    data_forget([SECRET], settings(), plan=False)


@pytest.fixture(scope="module")
def moved(nights, other) -> RunResult:
    """The line on the other base."""
    return rebase("support", str(other), training=LONG)


def trained(version: LineVersion, store: Store) -> list[set[bytes]]:
    """The identities of the rows of each of its datasets."""
    return [set(index(one.train, store).identities()) for one in version.datasets]


def test_what_learns_nothing_is_rejected(base, other, tmp_path, store):
    """A candidate on the new base that is worse than the champion on the old one: nothing changes."""
    retrain("strong", batch(tmp_path, 7), model=str(base), training=STRONG, gate=OPEN)
    lines = Lines(store)
    before = lines.live("strong")
    assert before
    result = rebase("strong", str(other), training=IDLE)
    assert result.status == "rejected" and result.gate.against == "champion", result.gate
    assert result.gate.average < result.gate.rival_average
    assert (lines.live("strong"), lines.versions("strong")) == (before, [1])


def test_a_plan_trains_nothing(nights, base, tmp_path_factory, store):
    """It says the rows, the stages and the cost of a base that was never tried, and makes neither adapter nor run."""
    third = nano.build(tmp_path_factory.mktemp("third"), seed=2)
    before = sorted(path.name for path in store.layout.artifacts.rglob("*") if path.is_dir())
    runs = [run.run_id for run in store.layout.begun()]
    plan = run_here.plan("rebase", asked_here("support", str(third)), fresh=False)
    todo = [stage.stage for stage in plan.stages if not stage.cached]
    assert (todo.count("train"), todo.count("gate")) == (2, 1) and plan.seconds and plan.disk
    version = Lines(store).live("support").version
    assert [(rows.task, rows.train) for rows in plan.rows] == [("support", one.train.rows) for one in version.datasets]
    assert plan.rows[0].heldout == version.heldout["support"].rows
    assert before == sorted(path.name for path in store.layout.artifacts.rglob("*") if path.is_dir())
    assert runs == [run.run_id for run in store.layout.begun()]


def test_a_line_moves_to_another_base(moved, other, base, store):
    """The next version is on the new base: all datasets in their order, the same held-out rows, by the line's strategy.

    The two tokenizers differ, so bits per byte decide, against the champion and the untouched new base.
    """
    lines = Lines(store)
    old, new = lines.version("support", 2), lines.version("support", 3)
    assert (moved.status, moved.version, moved.flow) == ("finished", 3, "rebase"), moved.gate
    assert not bases.same_tokens(old.base, new.base)
    assert (moved.gate.metric, moved.gate.against) == ("bits_per_byte", "champion")
    assert moved.gate.average > moved.gate.rival_average and moved.gate.average > moved.gate.base_average
    assert new.base.digest == bases.digest(other, store) != old.base.digest
    assert (new.heldout, new.merge, new.lora, new.parent, new.count) == (old.heldout, old.merge, old.lora, 2, 2)
    assert [one.train for one in new.datasets] == [one.train for one in old.datasets]
    assert len(moved.runs) == 2 and len(moved.evaluation.matrix) == 2
    assert lines.champion("support") == 3


def test_what_scores_and_what_was_forgotten_is_not_trained(moved, store):
    """No held-out row and no forgotten row is in what the new base was trained on."""
    version = Lines(store).version("support", 3)
    held = set(index(version.heldout["support"], store).identities())
    row = {"messages": [{"role": "user", "content": "What opens it?"}, {"role": "assistant", "content": SECRET}]}
    every = set[bytes]().union(*trained(version, store))
    assert len(every) > 200 and not every & held and identity(row) not in every


def test_the_line_continues_on_the_new_base(moved, base, tmp_path, store):
    """The next retrain starts from the new version on its base; its matrix has no score of the old one."""
    more = retrain("support", batch(tmp_path, 3), training=GOOD, gate=OPEN)
    assert more.base.digest == moved.base.digest and more.runs, more.reason
    assert [len(row) for row in more.evaluation.matrix] == [1, 1]
    again = evaluate("support@3")
    assert again.status == "finished" and again.base.digest == moved.base.digest
    with pytest.raises(LineConflict) as refused:
        retrain("support", batch(tmp_path, 4), model=str(base), training=GOOD)
    assert f"backprop rebase support --model {base}" in refused.value.hint


def test_a_line_goes_back_to_the_old_base(moved, base, tmp_path, store):
    """After a rollback the line is on the old base, and a retrain continues it there."""
    rollback("support", to=2, reason="the new base is slow")
    lines = Lines(store)
    old = lines.live("support")
    assert (old.number, old.version.base.name) == (2, str(base))
    more = retrain("support", batch(tmp_path, 5), training=GOOD, gate=OPEN)
    assert more.base.digest == old.version.base.digest and more.runs, more.reason
    assert len(more.evaluation.matrix) == 3
    lines.set_champion("support", 3)


def test_bases_with_the_same_tokens_compare_token_by_token(nights, tmp_path_factory, store):
    """Another base with the same tokenizer and template: the gate uses the line's own metric."""
    alike = nano.build(tmp_path_factory.mktemp("alike"), seed=3)
    Lines(store).set_champion("support", 2)
    result = rebase("support", str(alike), training=IDLE)
    assert result.gate.metric == "token_accuracy" and result.status == "rejected"


def test_what_cannot_be_moved_is_refused_at_once(nights, base, other, store, tmp_path, monkeypatch):
    """The base that the line has, and rows that the store no longer has: the error names them; nothing is trained."""
    Lines(store).set_champion("support", 2)
    with pytest.raises(ConfigInvalid, match=r"is on .* already"):
        rebase("support", ModelSpec(name=str(base)))
    copy = tmp_path / "copy"
    shutil.copytree(store.root, copy / "store")
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(copy))
    version = Lines(store).version("support", 2)
    shutil.rmtree(Store(copy / "store").layout.artifact(version.datasets[1].train.digest))
    with pytest.raises(DatasetMissing, match="night-2"):
        rebase("support", str(other))


def test_a_rebuild_repeats_the_move(base, other, tmp_path, store):
    """A line that learned a row and then moved is trained again without it: on its old base, then on the new one."""
    first = retrain("kept", batch(tmp_path, 8, SECRET + "!"), model=str(base), training=LITTLE, gate=OPEN)
    second = rebase("kept", str(other), training=GOOD)
    assert (first.version, second.version) == (1, 2), second.gate
    forgotten = data_forget([SECRET + "!"], settings(), plan=False)
    done = rebuild("kept", forgotten.identities, forgotten.seen, settings())
    assert (done.error, done.reason, done.versions, done.rebuilt) == (None, None, [1, 2], [3, 4])
    lines = Lines(store)
    before, after = lines.version("kept", 3), lines.live("kept")
    assert after.number == 4 and after.version.parent == 3
    assert (before.base.name, after.version.base.name) == (str(base), str(other))
    assert [one.train for one in after.version.datasets] == [one.train for one in before.datasets]
