"""A base that has no writer here goes through the user's own llama.cpp, of which there is a stand-in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from backprop_core.errors import (
    ArchitectureUnsupported,
    BackpropError,
    ConfigInvalid,
    GGUFExportFailed,
    Interrupted,
)
from backprop_core.export import llamacpp_converter
from backprop_core.export.fidelity import measure
from backprop_core.export.fidelity_reference import refer
from backprop_core.models import base as bases
from backprop_core.models.loading import load
from backprop_core.schema.refs import AdapterRef, BaseRef, ConverterRef
from backprop_core.schema.specs import ModelSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from backprop_core.worker.runner import Runner
from tests.backprop_core import stand_in_converter
from tests.backprop_core import tiny_models as tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose architecture has no writer here."""
    return stand_in_converter.rename(tiny.build(tmp_path_factory.mktemp("odd") / "base", "llama"))


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    """A checkout with a converter that works."""
    return stand_in_converter.install(tmp_path / "llama.cpp")


def adapter_on(base: Path, store: Store) -> AdapterRef:
    with store.begin("adapter") as directory:
        tiny.add_adapter(base, directory)
        (directory / "README.md").unlink()
        return store.commit(directory, AdapterRef, kind="merged", record={})


def converted(
    odd: Path, store: Store, converter: ConverterRef, *, stop: bool = False
) -> tuple[Any, AdapterRef, BaseRef]:
    """The stage's result, on an adapter."""
    adapter, base = adapter_on(odd, store), bases.resolve(ModelSpec(name=str(odd)), store)
    job = {"base": base, "adapter": adapter, "outtype": "f32", "converter": converter}
    stages = Runner(store, should_stop=lambda: stop)
    return stages.run("convert_outside", "k", job, lambda event: None), adapter, base


def left_in(store: Store) -> list[Path]:
    """Files that are being written."""
    return [path for path in (store.root / "tmp").rglob("*") if path.is_file() and path.name != "lock"]


def test_its_file_answers_as_the_model(odd: Path, llama_cpp: Path, store: Store) -> None:
    """The converter gets the fused model and its tokenizer, and what it writes passes the fidelity check."""
    before = left_in(store)
    gguf, adapter, base = converted(odd, store, llamacpp_converter.find(llama_cpp, sys.executable, odd))
    asked = json.loads((llama_cpp / "asked.json").read_text())
    model, *options = asked["argv"]
    assert Path(model).name == "model" and {"config.json", "tokenizer.json", "model.safetensors"} <= {*asked["files"]}
    assert options[::2] == ["--outfile", "--outtype"] and options[3] == "f32"
    loaded = load(odd, precision="fp32", device="cpu")
    file = store.local(gguf) / "model.gguf"
    fused = PeftModel.from_pretrained(tiny.load(odd), store.local(adapter)).merge_and_unload()
    known = refer(fused, loaded.tokenizer, [{"text": text} for text in tiny.PROMPTS[:2]])
    assert measure(known, file, quantization="f32").top1 == 1
    assert gguf.quantization == "f32" and left_in(store) == before
    assert store.record(gguf.digest)["base"] == base.digest


def test_its_failure_is_told_and_leaves_nothing(odd: Path, llama_cpp: Path, store: Store) -> None:
    """Its own last words stand in the error; the half file and the fused model are gone."""
    converter, before = llamacpp_converter.find(llama_cpp, sys.executable, odd), left_in(store)
    (llama_cpp / "broken").touch()
    with pytest.raises(GGUFExportFailed, match=r"status 1: .*BPE pre-tokenizer was not recognized"):
        converted(odd, store, converter)
    assert left_in(store) == before


def test_it_stops_when_told(odd: Path, llama_cpp: Path, store: Store) -> None:
    """Ctrl-C ends the converter, too."""
    converter = llamacpp_converter.find(llama_cpp, sys.executable, odd)
    (llama_cpp / "slow").touch()
    with pytest.raises(Interrupted):
        converted(odd, store, converter, stop=True)
    assert not alive(json.loads((llama_cpp / "asked.json").read_text())["pid"])


def test_it_ends_with_us(llama_cpp: Path, tmp_path: Path) -> None:
    """A kill leaves no converter running."""
    (llama_cpp / "slow").touch()
    command = [
        sys.executable,
        "-c",
        llamacpp_converter.BOUND,
        str(llama_cpp / llamacpp_converter.SCRIPT),
        str(tmp_path),
    ]
    script = (
        "import sys; from pathlib import Path; from backprop_core.export import llamacpp_converter; "
        "llamacpp_converter.run(sys.argv[2:], Path(sys.argv[1]), lambda: None)"
    )
    ours = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log"), *command])
    told = llama_cpp / "asked.json"
    assert until(lambda: told.is_file() and told.stat().st_size > 0)
    pid = json.loads(told.read_text())["pid"]
    assert alive(pid)
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    assert until(lambda: not alive(pid))


def until(happened: Any, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(happened())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        (None, ConfigInvalid, "has no convert_hf_to_gguf.py"),
        ("raise ModuleNotFoundError('gguf')", ConfigInvalid, "does not start: .*gguf"),
        ("print('- LlamaForCausalLM\\n- OddForCausalLMs')", ArchitectureUnsupported, "does not support OddForCausalLM"),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights(
    script: str | None, error: type[BackpropError], said: str, odd: Path, tmp_path: Path
) -> None:
    """No converter, one that does not start, or one that does not know the architecture."""
    base, directory = tmp_path / "base", tmp_path / "llama.cpp"
    base.mkdir()
    directory.mkdir()
    shutil.copyfile(odd / "config.json", base / "config.json")
    if script:
        (directory / llamacpp_converter.SCRIPT).write_text(script)
    with pytest.raises(error, match=said):
        llamacpp_converter.find(directory, sys.executable, base)


def test_an_interpreter_that_is_not_there(odd: Path, llama_cpp: Path) -> None:
    """The error names it, the hint the setting."""
    with pytest.raises(ConfigInvalid, match="/no/python") as caught:
        llamacpp_converter.find(llama_cpp, "/no/python", odd)
    assert "BACKPROPAGATE_LLAMA_CPP_PYTHON" in caught.value.hint


def test_another_checkout_is_another_key(odd: Path, llama_cpp: Path, tmp_path: Path) -> None:
    """What the converter is made of decides the key; where it lies, what runs it and what else is there do not."""

    def key(directory: Path, python: str = sys.executable) -> str:
        converter = ConverterRef(digest=llamacpp_converter.identity(directory), path=str(directory), python=python)
        return stage_key("convert_outside", {"outtype": "f16", "converter": converter})

    first = key(llama_cpp)
    other = stand_in_converter.install(tmp_path / "other")
    (other / "README.md").write_text("new")
    assert key(other, "python3") == first
    (other / "conversion" / "odd.py").write_text("LAYERS = 3\n")
    assert key(other) != first


def test_a_checkout_that_changed_meanwhile_is_refused(odd: Path, llama_cpp: Path, store: Store) -> None:
    """The file would not be what the key says."""
    converter = llamacpp_converter.find(llama_cpp, sys.executable, odd)
    (llama_cpp / "conversion" / "odd.py").write_text("LAYERS = 3\n")
    with pytest.raises(GGUFExportFailed, match="has changed since"):
        llamacpp_converter.check(converter)
