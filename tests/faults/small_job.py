"""A training of a few quick steps, a checkpoint after each, as the worker runs it."""

from pathlib import Path
from typing import Any

from backprop_core.models import base as bases
from backprop_core.schema.refs import TrainResult
from backprop_core.schema.specs import LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.stages import train
from backprop_core.worker.runner import Runner
from tests.backprop_core import nano

STEPS = 5
KEY = "a" * 64
SPEC = TrainSpec(
    steps=STEPS,
    batch_size=8,
    max_length=128,
    precision="fp32",
    device="cpu",
    checkpoint_seconds=0,
    lora=LoraSpec(rank=2, alpha=4, dropout=0.1, target_modules=["q_proj", "down_proj"]),
)


class SmallJob:
    """The job in a store of its own; the same bits wherever it runs."""

    def __init__(self, base: Path, root: Path) -> None:
        self.store = Store(root)
        self.checkpoints = self.store.layout.checkpoints(KEY)
        ref = bases.resolve(ModelSpec(name=str(base)), self.store)
        rows = nano.commit_rows(self.store, nano.chats(20))
        self.parameters = train.job(base=ref, rows=rows, spec=SPEC, start=None).model_dump(mode="json")

    def train(self, stop_after: int = STEPS) -> TrainResult:
        """The job in this process; Interrupted after a checkpoint at `stop_after`. `done` has the steps."""
        self.done: list[int] = []

        def emit(event: dict[str, Any]) -> None:
            self.done.append(event["done"])

        stages = Runner(self.store, should_stop=lambda: self.done[-1] >= stop_after)
        result = stages.run("train", KEY, self.parameters, emit)
        assert isinstance(result, TrainResult)
        return result

    def run(self) -> tuple[str, list[int]]:
        """Digest of the adapter, and the steps that were done for it."""
        return self.train().adapter.digest, self.done

    def assert_nothing_left(self) -> None:
        """No lock is held, no temporary directory outlives a sweep, no artifact is damaged."""
        self.store.close()
        self.store.sweep()
        assert list(self.store.root.glob("tmp/*")) == []
        locks = list(self.store.root.glob("locks/*.lock"))
        assert locks
        for lock in locks:
            self.store.lock(lock.stem).acquire(timeout=0).lock.release()
        assert list(self.store.check()) == []
