"""A small model in memory, and a store: one of each for whoever wants no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.refs import AdapterRef, RowsRef
from backprop_core.schema.specs import LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from tests.backprop_core import nano


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model on disk."""
    return nano.build(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(path: Path) -> LoadedBase:
    return load(path, precision="fp32", device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store for each test."""
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for a module."""
    store = Store(tmp_path_factory.mktemp("store"))
    yield store
    store.close()


@pytest.fixture(scope="module")
def heldout(shared: Store) -> RowsRef:
    return nano.commit_rows(shared, nano.chats(40))


@pytest.fixture(scope="module")
def tuned(base: LoadedBase, shared: Store, heldout: RowsRef) -> AdapterRef:
    """An adapter that has learned part of `heldout` by heart."""
    lora = LoraSpec(rank=16, alpha=32)
    spec = TrainSpec(steps=80, batch_size=8, learning_rate=1e-2, max_length=128, precision="fp32", lora=lora)
    quiet: dict[str, Any] = {"on_metrics": lambda *_: None, "should_stop": lambda: False}
    return train(base, heldout, spec=spec, start=None, key="k", store=shared, **quiet).adapter
