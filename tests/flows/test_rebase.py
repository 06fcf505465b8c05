"""A line moves to another base: its stored rows are trained anew, and it continues there if the gate accepts."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import GateSpec, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.rebase import rebase
from flows.rebuild import rebuild
from flows.retrain import retrain
from tasks.runs.data_forget import data_forget
from tests.backprop_core import nano, tiny_models

LORA = LoraSpec(rank=8)
GOOD = TrainSpec(steps=24, batch_size=8, learning_rate=1e-2, lora=LORA)
LITTLE = GOOD.model_copy(update={"steps": 4})
LONG = GOOD.model_copy(update={"steps": 60})
IDLE = GOOD.model_copy(update={"steps": 2, "learning_rate": 1e-9})
OPEN = GateSpec(max_drop=1)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
SECRET = "the vault of Ann Smith opens with 7731-quokka"
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for these tests: they share what is cached."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        yield home


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
