"""What a file answers through llama.cpp and its own template, beside the model: shown, and a reason to stop it."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from llama_cpp import llama_chat_format

from backprop_core.errors import ExportFidelity
from backprop_core.evaluation.generation import answer
from backprop_core.export.fidelity import measure
from backprop_core.export.fidelity_reference import Reference, conversations, refer
from backprop_core.export.gguf import convert
from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.refs import Generated
from backprop_core.schema.specs import CanarySpec, GenerationSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import tiny_models as tiny

EXAMPLE_BASE = Path(__file__).parents[3] / "examples" / "base"
QUESTION = "Which team takes this request?\nHi, the speaker stays dark when I press the button. Best wishes."
CANARY = CanarySpec(prompt=QUESTION, expect="repairs")
ROW: dict[str, Any] = {
    "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "This goes to Repairs."}]
}


@pytest.fixture(scope="module")
def example() -> LoadedBase:
    """A model that has learned to answer."""
    return load(EXAMPLE_BASE, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "model.gguf"
    convert(EXAMPLE_BASE, None, path, outtype="f32")
    return path


def reference(base: LoadedBase, store: Store) -> Reference:
    """What the model itself makes of a row, and says to the canary."""
    chats = conversations(base.tokenizer, [QUESTION], [])
    said = answer(base, None, chats, spec=GenerationSpec(max_new_tokens=64), store=store)
    return refer(base.model, base.tokenizer, [ROW], [(chats[0], said[0])])


def test_answers_stand_beside_the_models(example: LoadedBase, file: Path, store: Store) -> None:
    """An exact file says what transformers says, and ends."""
    found = measure(reference(example, store), file, quantization="f32", canaries=[CANARY])
    [said] = found.answers
    assert (said.prompt, said.answer, said.reference) == (QUESTION, "This goes to Repairs.", "This goes to Repairs.")
    assert said.stopped


def test_a_file_that_fails_a_canary_is_stopped(example: LoadedBase, store: Store, tmp_path: Path) -> None:
    """It may be near enough token by token; a canary that the model fails itself stops nothing."""
    adapter = tiny.add_adapter(EXAMPLE_BASE, tmp_path / "adapter", lora_alpha=24)
    convert(EXAMPLE_BASE, adapter, tmp_path / "model.gguf", outtype="f32")
    known = reference(example, store)
    measure(
        known,
        tmp_path / "model.gguf",
        quantization="q2_k",
        canaries=[CanarySpec(prompt=QUESTION, expect="Marketing")],
    )
    with pytest.raises(ExportFidelity, match="answers the canary"):
        measure(known, tmp_path / "model.gguf", quantization="q2_k", canaries=[CANARY])


def test_a_divergence_that_no_argmax_shows_is_stopped(example: LoadedBase, file: Path, tmp_path: Path) -> None:
    """Negative control: three times the logits leave every most likely token what it is, and are another model."""
    sharp = shutil.copy(file, tmp_path / "model.gguf")
    [norm] = [tensor for tensor in GGUFReader(sharp, "r+").tensors if tensor.name == "output_norm.weight"]
    norm.data[:] *= 3
    with pytest.raises(ExportFidelity, match="diverges from the model by"):
        measure(refer(example.model, example.tokenizer, [ROW]), sharp, quantization="q8_0")


def test_a_template_that_llama_cpp_writes_otherwise_is_stopped(tmp_path: Path) -> None:
    """Negative control: a name that transformers leaves empty and llama.cpp fills with a token of its own choice."""
    base = shutil.copytree(EXAMPLE_BASE, tmp_path / "base")
    template = base / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text(encoding="utf-8"), encoding="utf-8")
    convert(base, None, tmp_path / "model.gguf", outtype="f32")
    loaded = load(base, precision="fp32", device="cpu")
    one = [(ROW["messages"][:1], Generated(text="", tokens=0, stopped=True))]
    known = refer(loaded.model, loaded.tokenizer, [{"text": "a"}], one)
    with pytest.raises(ExportFidelity, match="renders a chat as"):
        measure(known, tmp_path / "model.gguf", quantization="f32")


def test_the_files_own_template_sees_the_fixed_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose template writes the day is compared on the day that it was trained on, whatever day it is."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 2, 3)

    monkeypatch.setattr(llama_chat_format, "datetime", Later)
    base = shutil.copytree(EXAMPLE_BASE, tmp_path / "base")
    template = base / "chat_template.jinja"
    template.write_text(
        "{{ strftime_now('%Y-%m-%d') + '\n' }}" + template.read_text(encoding="utf-8"), encoding="utf-8"
    )
    convert(base, None, tmp_path / "model.gguf", outtype="f32")
    loaded = load(base, precision="fp32", device="cpu")
    one = [(ROW["messages"][:1], Generated(text="", tokens=0, stopped=True))]
    known = refer(loaded.model, loaded.tokenizer, [{"text": "a"}], one)
    assert measure(known, tmp_path / "model.gguf", quantization="f32").ids_equal
    assert "strftime_now" in GGUFReader(tmp_path / "model.gguf").fields["tokenizer.chat_template"].contents()


def test_what_is_asked(example: LoadedBase) -> None:
    """The canaries; without any the first two conversations that are short enough, up to their last answers."""
    long = {"messages": [{"role": "user", "content": "button " * 600}, *ROW["messages"][1:]]}
    rows = [{"text": "raw"}, long, ROW, ROW, ROW]
    assert conversations(example.tokenizer, [], rows) == [ROW["messages"][:1]] * 2
    assert conversations(example.tokenizer, [QUESTION], rows) == [[{"role": "user", "content": QUESTION}]]
    assert conversations(example.tokenizer, [], rows[:2]) == []
