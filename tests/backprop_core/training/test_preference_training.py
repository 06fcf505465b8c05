"""Preferences are trained in the same loop: learned, resumed bit for bit, whatever memory and processes there are."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data import batching
from backprop_core.data.row_files import commit, index
from backprop_core.data.row_sets import replay
from backprop_core.errors import GPUOutOfMemory, Interrupted
from backprop_core.evaluation.scoring import evaluate
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import AdapterRef, RowsRef, Scores, TrainResult
from backprop_core.schema.specs import LoraSpec, PreferenceLoss, PreferenceSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from backprop_core.training.reference import reference_log_probs
from tests.backprop_core import nano
from tests.backprop_core.training.test_checkpoint import Children
from tests.backprop_core.training.test_oom_recovery import memory

LOSSES: list[PreferenceLoss] = ["dpo", "kto", "orpo"]
SPEC = TrainSpec(
    steps=6, batch_size=8, learning_rate=1e-2, max_length=128, checkpoint_seconds=60, lora=LoraSpec(rank=4, alpha=8)
)
Rows = list[dict[str, Any]]
Metrics = list[dict[str, float]]


def asks(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"Say {number}" + " please" * (number % 5)}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pairs(numbers: range, *, better: str = "Yes.", worse: str = "No!") -> Rows:
    return [{"messages": [asks(n)], "chosen": [says(better)], "rejected": [says(worse)]} for n in numbers]


def thumbs(numbers: range, *, better: str = "Yes.", worse: str = "No!") -> Rows:
    """Half of the answers are the better one."""
    return [{"messages": [asks(n), says(worse if n % 2 else better)], "label": n % 2 == 0} for n in numbers]


MIXED = [*pairs(range(10)), *nano.chats(12), *thumbs(range(10, 20))]
random.Random(0).shuffle(MIXED)


def run(
    base: LoadedBase,
    rows: RowsRef,
    store: Store,
    *,
    loss: PreferenceLoss = "dpo",
    champion: AdapterRef | None = None,
    metrics: Metrics | None = None,
    stop_after: int | None = None,
    key: str = "key",
    **fields: Any,
) -> TrainResult:
    """Train rows with preferences, compared with a champion or the base."""
    seen: Metrics = [] if metrics is None else metrics
    known = reference_log_probs(base, champion, rows, loss=loss, max_length=128, store=store)
    return train(
        base,
        rows,
        spec=SPEC.model_copy(update={"preference": PreferenceSpec(loss=loss), **fields}),
        start=None,
        key=key,
        store=store,
        on_metrics=lambda step, total, values: seen.append(values),
        should_stop=lambda: len(seen) == stop_after,
        reference=known,
    )


def scores(base: LoadedBase, adapter: AdapterRef | None, rows: Rows, store: Store) -> Scores:
    return evaluate(base, adapter, nano.commit_rows(store, rows), max_length=128, store=store)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_preference_is_learned(base: LoadedBase, store: Store, loss: PreferenceLoss) -> None:
    """Trained to prefer what the base does not, the model prefers it for questions that it has not seen."""
    liked = scores(base, None, pairs(range(100, 120)), store).token_accuracy
    words = {"better": "No!", "worse": "Yes."} if liked > 0.5 else {}
    unseen = pairs(range(100, 120), **words)
    assert (before := scores(base, None, unseen, store).token_accuracy) <= 0.5
    made = run(base, nano.commit_rows(store, pairs(range(40), **words)), store, loss=loss, steps=25)
    after = scores(base, made.adapter, unseen, store)
    assert after.preferences and after.rows == 20
    assert after.token_accuracy > 0.9 > before


def test_thumbs_are_learned(base: LoadedBase, store: Store) -> None:
    """Answers with a thumb up become more likely, those with a thumb down less; the base itself is undecided."""
    unseen = thumbs(range(100, 120))
    undecided = scores(base, None, unseen, store)
    assert undecided.token_accuracy == 0.5 and undecided.exact_match == 0
    made = run(base, nano.commit_rows(store, thumbs(range(40))), store, steps=25)
    assert scores(base, made.adapter, unseen, store).token_accuracy > 0.9
    against = [{**row, "label": not row["label"]} for row in unseen]
    assert scores(base, made.adapter, against, store).token_accuracy < 0.1


def test_a_mixed_night_learns_both(base: LoadedBase, store: Store) -> None:
    """With answers and preferences in the same steps, the loss of the answers falls and the preference is learned."""
    rows = nano.commit_rows(store, [*pairs(range(30), better="No!", worse="Yes."), *nano.chats(30)])
    made = run(base, rows, store, steps=40)
    chats, judged = nano.chats(12, seed=1), pairs(range(100, 120), better="No!", worse="Yes.")
    assert scores(base, made.adapter, judged, store).token_accuracy > 0.9
    assert scores(base, made.adapter, chats, store).loss < scores(base, None, chats, store).loss - 0.3


@pytest.mark.parametrize("loss", LOSSES)
def test_stopped_and_run_again_is_the_same(base: LoadedBase, store: Store, loss: PreferenceLoss) -> None:
    """With dropout and rows of all kinds: stopped after two steps and run again, the uninterrupted run's adapter."""
    rows, straight, again = nano.commit_rows(store, MIXED), Metrics(), Metrics()
    dropout = LoraSpec(rank=4, alpha=8, dropout=0.2)
    whole = run(base, rows, store, loss=loss, metrics=straight, lora=dropout, key="other")
    with pytest.raises(Interrupted, match="after step 2 of 6"):
        run(base, rows, store, loss=loss, lora=dropout, stop_after=2)
    resumed = run(base, rows, store, loss=loss, metrics=again, lora=dropout)
    assert again == straight[2:]
    assert resumed.model_copy(update={"seconds": whole.seconds}) == whole


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    return Children(tmp_path_factory.mktemp("children"))


@pytest.mark.parametrize("loss", LOSSES)
def test_killed_and_run_again_is_the_same(children: Children, tmp_path: Path, loss: PreferenceLoss) -> None:
    """SIGKILL at operations of the first, a middle and the last checkpoint, one after the other: the same adapter."""
    digests, killed = [], 0
    for name, kills in (("whole", [None]), ("killed", [9, 30, 60, None])):
        store = Store(tmp_path / name)
        rows = nano.commit_rows(store, MIXED)
        for kill_at in kills:
            status = children.run(tmp_path / name, rows, kill_at, loss=loss)
            killed += status == -9
            assert kill_at or status == 0
        digests.append((tmp_path / name / "digest").read_text())
    assert killed >= 2 and digests[0] == digests[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_less_at_a_time_is_the_same_result(base: LoadedBase, store: Store, loss: PreferenceLoss) -> None:
    """Where memory runs out, in KTO's estimate too, half as much until it fits: the same losses to 1e-5."""
    rows, expected, found = nano.commit_rows(store, MIXED), Metrics(), Metrics()
    run(base, rows, store, loss=loss, metrics=expected, key="other")
    with memory(base, lambda ids: ids.numel() <= 130 or not is_adapted(base)) as failed:
        run(base, rows, store, loss=loss, metrics=found)
    assert failed
    for one, other in zip(found, expected, strict=True):
        assert [one["loss"], one["grad_norm"]] == pytest.approx([other["loss"], other["grad_norm"]], rel=1e-5)


def is_adapted(base: LoadedBase) -> bool:
    """Whether the base has an adapter now, so is trained."""
    return any("lora_" in name for name, _ in base.model.named_parameters())


def test_a_pair_that_does_not_fit_says_so(base: LoadedBase, store: Store) -> None:
    """One pair is the least: below it activations are not kept, then there is a coded error, and no endless loop."""
    rows = nano.commit_rows(store, pairs(range(8)))
    with memory(base, lambda ids: not is_adapted(base)), pytest.raises(GPUOutOfMemory, match="step 1 of 6"):
        run(base, rows, store)


def test_two_processes_train_as_one(base: LoadedBase, store: Store) -> None:
    """Two processes, of which one runs out of memory, take the same steps as one, with rows of all kinds."""
    expected = Metrics()
    run(base, nano.commit_rows(store, MIXED), store, loss="kto", metrics=expected)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "tests.backprop_core.two_short_of_memory", base.model.name_or_path, str(store.root / "two"), "kto"]
    done = subprocess.run([*launcher, *job], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [values["loss"] for values in found] == pytest.approx([values["loss"] for values in expected], rel=1e-5)


def test_the_champion_is_the_reference(base: LoadedBase, store: Store) -> None:
    """Compared with another model, the same rows make another adapter; ORPO has no reference."""
    rows = nano.commit_rows(store, pairs(range(16)))
    champion = run(base, rows, store, steps=4, key="champion").adapter
    expected: list[tuple[PreferenceLoss, bool]] = [("dpo", True), ("orpo", False)]
    for loss, differs in expected:
        alone = run(base, rows, store, loss=loss, key=f"{loss}-alone")
        compared = run(base, rows, store, loss=loss, champion=champion, key=f"{loss}-champion")
        assert (alone.adapter != compared.adapter) is differs, loss


def test_preferences_are_replayed_and_repeated(base: LoadedBase, store: Store) -> None:
    """Replayed preferences are in the epochs that draw them; a repeated pair is trained as often as it says."""
    new, old = nano.commit_rows(store, nano.chats(12)), nano.commit_rows(store, pairs(range(10)))
    mixed = replay(new, [old], heldout=[], share=0.1, passes=3, seed=0, store=store)
    metrics = Metrics()
    run(base, mixed, store, metrics=metrics, steps=None, epochs=3, batch_size=4)
    every = index(nano.commit_rows(store, pairs(range(8))), store)
    once = run(base, commit(every, store, {}), store, steps=None, epochs=1, batch_size=4, key="once")
    every.entries["repeats"][:4] = 1
    twice = run(base, commit(every, store, {}), store, steps=None, epochs=1, batch_size=4, key="twice")
    distinct = len({json.dumps(row) for row in nano.chats(12)})
    assert len(metrics) == 3 * -(-(distinct + 1) // 4)
    assert (once.steps, twice.steps) == (2, 3) and twice.tokens > once.tokens


def test_rows_without_preferences_are_trained_as_before(base: LoadedBase, store: Store) -> None:
    """With a loss for preferences and none among the rows, each step has the loss and gradient of one without."""
    rows, expected, found = nano.commit_rows(store, nano.chats(24)), Metrics(), Metrics()
    run(base, rows, store, metrics=found)
    train(
        base,
        rows,
        spec=SPEC,
        start=None,
        key="plain",
        store=store,
        on_metrics=lambda step, total, values: expected.append(values),
        should_stop=lambda: False,
    )
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_judgments_are_never_answers(base: LoadedBase, store: Store) -> None:
    """Without a loss for them, rows that judge answers are refused: a thumb down would be trained as a good answer."""
    rows = nano.commit_rows(store, MIXED)
    with pytest.raises(AssertionError, match="no answers to learn"):
        batching.load(base, rows, max_length=128, store=store)
    assert batching.load(base, nano.commit_rows(store, nano.chats(12)), max_length=128, store=store)
