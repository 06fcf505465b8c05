"""A directory with a PEFT adapter is a REF: on the base that fits it, or refused before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from backprop_core.errors import AdapterMismatch, BackpropError, ConfigInvalid, InputValidationFailed, RefAmbiguous
from backprop_core.gguf.fuse import Fused
from backprop_core.specs import EvaluationSpec, ExportSpec, PublishSpec
from backprop_core.store import Store
from tasks.prepare import evaluated, made, published
from tests.core import tiny_models as tiny
from tests.tasks.test_made import add_version

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("base") / "base", "llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DoRA adapter by PEFT itself, which writes its base's directory into the config; one is in the directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    return tiny.add_adapter(base, tmp_path / "adapter", use_dora=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def change(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_directory_is_its_adapter_on_its_base(adapter: Path, base: Path, store: Store) -> None:
    """The base is that of its config, or of --model; what is kept fuses as the directory does, and has no path."""
    found = made(str(adapter), store)
    change(adapter, base_model_name_or_path="")
    assert made("adapter", store, model=str(base)).adapter == found.adapter
    assert found.base.name == str(base) and found.spec.training.lora.variant == "dora" and found.of is None
    assert found.adapter
    kept, given = (Fused(base, directory) for directory in (store.local(found.adapter), adapter))
    assert all(kept.tensor(name).equal(given.tensor(name)) for name in kept.names())
    assert str(base) not in (store.local(found.adapter) / "adapter_config.json").read_text()
    with pytest.raises(ConfigInvalid, match="does not say what its base is"):
        made("adapter", store)


def narrower(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t[:, :-1].contiguous() if "lora_A" in name else t for name, t in tensors.items()}, path)


def elsewhere(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.9"): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (narrower, AdapterMismatch, "does not fit"),
        (elsewhere, AdapterMismatch, "layers.9"),
        (lambda adapter: change(adapter, init_lora_weights="pissa_niter_4"), AdapterMismatch, "pissa"),
        (lambda adapter: change(adapter, modules_to_save=["lm_head"]), AdapterMismatch, "modules_to_save"),
        (lambda adapter: change(adapter, peft_type="LOHA"), AdapterMismatch, "LOHA"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), InputValidationFailed, "cannot be read"),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"\2" + bytes(7) + b"\x80\x02"),
            InputValidationFailed,
            "cannot be read",
        ),
    ],
)
def test_what_a_merge_cannot_mean_is_refused(
    spoil: Callable[[Path], Any], error: type[BackpropError], said: str, adapter: Path, store: Store
) -> None:
    """Another base, a base that was changed, more than B·A, another kind, a broken file: nothing is kept of it."""
    spoil(adapter)
    with pytest.raises(error, match=said):
        made(str(adapter), store)
    assert list(store.root.glob("artifacts/*")) == []


def test_a_name_that_is_a_directory_and_a_line(adapter: Path, base: Path, store: Store) -> None:
    """It is refused; as ./name it is the directory, and a run's own base is not another."""
    add_version(store, "adapter", "ab" * 16, "2" * 64)
    with pytest.raises(RefAmbiguous, match="is a directory with an adapter"):
        made("adapter", store)
    assert made("./adapter", store).base.name == str(base)
    with pytest.raises(ConfigInvalid, match="base of its own"):
        made("adapter@1", store, model=str(base))


def test_what_a_directory_does_not_have(adapter: Path, store: Store) -> None:
    """No held-out rows to be scored on, and no record for a model card."""
    with pytest.raises(ConfigInvalid, match="no held-out rows"):
        evaluated(str(adapter), [], EvaluationSpec(), store)
    with pytest.raises(BackpropError, match="no record"):
        published(str(adapter), PublishSpec(repo="a/b"), ExportSpec(), store)
