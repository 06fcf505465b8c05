"""What cannot work is refused before anything is done: no Prefect, no worker, nothing but notes on the data."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from backprop_core.errors import (
    AdapterMismatch,
    ArchitectureUnsupported,
    BackpropError,
    ConfigInvalid,
    ExtraMissing,
    VariantUnsupported,
)
from backprop_core.schema.specs import LoraSpec, RunSpec
from backprop_core.store.artifacts import Store
from tasks.runs import prepared_run, resolve
from tests.backprop_core import nano, stand_in_converter


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"))


def prepared(
    base: Path, place: Path, *, datasets: int = 1, export: dict[str, Any] | None = None, **training: Any
) -> prepared_run.Prepared:
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    spec = {
        "model": {"name": str(base)},
        "datasets": [{"path": str(place / "a.jsonl")}] * datasets,
        "training": {"device": "cpu", **training},
        "export": export or {},
    }
    return resolve.prepare("multi-run", RunSpec.model_validate(spec), Store(place / "store"))


def test_a_start_is_of_one_run(base: Path, tmp_path: Path) -> None:
    """PiSSA and LoftQ may begin a single run; of several runs the second one has an adapter already."""
    assert prepared(base, tmp_path, lora={"variant": "pissa"}).spec.training.lora.variant == "pissa"
    assert prepared(base, tmp_path, lora={"variant": "loftq"}, precision="nf4")
    assert prepared(base, tmp_path, datasets=2, lora={"variant": "dora"})
    for asked in ({"lora": {"variant": "pissa"}}, {"lora": {"variant": "loftq"}, "precision": "nf4"}):
        with pytest.raises(VariantUnsupported, match="continues an adapter"):
            prepared(base, tmp_path, datasets=2, **asked)


def test_loftq_needs_a_quantized_base(base: Path, tmp_path: Path) -> None:
    """On whole weights there is nothing to make up for; the hint says what would."""
    with pytest.raises(VariantUnsupported, match="fp32") as caught:
        prepared(base, tmp_path, lora={"variant": "loftq"})
    assert "nf4" in caught.value.hint


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_what_nf4_needs_is_looked_for_first(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Without one of the two packages a run that would quantize ends before it begins; others do not ask for it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissing, match=package) as caught:
        prepared(base, tmp_path, precision="nf4")
    assert "[qlora]" in caught.value.hint
    prepared(base, tmp_path)


def test_a_base_without_a_writer_needs_a_llama_cpp(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a base is refused by a hint that names the setting; with it, its converter is part of what is prepared."""
    odd = stand_in_converter.rename(shutil.copytree(base, tmp_path / "odd"))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    assert prepared(odd, tmp_path).converter is None
    with pytest.raises(ArchitectureUnsupported, match="OddForCausalLM") as caught:
        prepared(odd, tmp_path, export={"quantizations": ["f16"]})
    assert "LLAMA_CPP_DIR" in caught.value.hint
    checkout = stand_in_converter.install(tmp_path / "llama.cpp")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(checkout))
    found = prepared(odd, tmp_path, export={"quantizations": ["f16"]}).converter
    assert found and (found.path, found.python) == (str(checkout), sys.executable)
    with pytest.raises(ArchitectureUnsupported):
        prepared(odd, tmp_path, export={"packages": ["gguf-lora"]})
    with pytest.raises(ConfigInvalid, match="imatrix"):
        prepared(odd, tmp_path, export={"quantizations": ["q2_k"], "imatrix": True})
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ArchitectureUnsupported, match="quantized weights"):
        prepared(odd, tmp_path, export={"quantizations": ["f16"]})


def test_dora_is_no_gguf_adapter(base: Path, tmp_path: Path) -> None:
    """It is refused before it is trained; fused, and without DoRA, the same export is none of our business."""
    with pytest.raises(AdapterMismatch, match="DoRA"):
        prepared(base, tmp_path, export={"packages": ["gguf-lora"]}, lora={"variant": "dora"})
    assert prepared(base, tmp_path, export={"quantizations": ["f16"]}, lora={"variant": "dora"})
    assert prepared(base, tmp_path, export={"packages": ["gguf-lora"]})


def test_a_llama_cpp_changes_nothing_where_we_have_a_writer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same work, by the same digest, whether the setting is there or not."""
    export = {"quantizations": ["f16"]}
    without = prepared(base, tmp_path, export=export)
    monkeypatch.setenv("BACKPROPAGATE_LLAMA_CPP_DIR", "/no/such/llama.cpp")
    with_it = prepared(base, tmp_path, export=export)
    assert with_it.converter is None and with_it.digest() == without.digest()


def test_nothing_is_written_for_what_is_refused(base: Path, tmp_path: Path) -> None:
    """A refusal leaves no artifact and no run behind."""
    with pytest.raises(BackpropError):
        prepared(base, tmp_path, datasets=2, lora={"variant": "pissa"})
    assert not any((tmp_path / "store" / name).exists() for name in ("artifacts", "runs", "checkpoints"))


def test_what_a_line_chose_is_not_asked_again() -> None:
    """A rank that its first run chose stays where only alpha is given; another alpha is another shape."""
    own = LoraSpec(rank=64, alpha=16)
    assert resolve.like(own, LoraSpec(alpha=16)) == resolve.like(own, LoraSpec()) == own
    assert resolve.like(own, LoraSpec(alpha=8)) != own
