"""An adapter that brings a chat template or a tokenizer of its own is used, exported and measured with them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer

from backprop_core.data.chat_encoding import encode_prompts
from backprop_core.errors import (
    AdapterMismatch,
    BackpropError,
    ChatTemplateUnusable,
    InputValidationFailed,
    ModelLoadFailed,
    UnsafeModel,
)
from backprop_core.evaluation.generation import answer
from backprop_core.export.fidelity_reference import read_reference
from backprop_core.models.base import TOKENIZER_FILES, template_of
from backprop_core.models.loading import load, with_tokenizer_of
from backprop_core.schema.specs import GenerationSpec
from backprop_core.store.artifacts import Store
from backprop_core.worker.runner import Runner
from tasks.runs.adapter_directory import adapter_in
from tests.backprop_core import nano
from tests.backprop_core import tiny_models as tiny

# PEFT asks transformers for a property that it renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
OWN = "{% for m in messages %}<|im_start|>[{{ m['role'] }}] {{ m['content'] }}<|endoftext|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>[assistant] {% endif %}"
)
ASKED = [{"role": "user", "content": "What is a kettle?"}]
ROWS = [{"messages": [*ASKED, {"role": "assistant", "content": "It boils water."}]}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("base") / "base", "llama", vocab_size=300)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return tiny.add_adapter(base, tmp_path / "adapter")


def template_file(adapter: Path, base: Path) -> None:
    (adapter / "chat_template.jinja").write_text(OWN)


def template_in_config(adapter: Path, base: Path) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": OWN}))


def whole_tokenizer(adapter: Path, base: Path) -> None:
    """As a trainer saves it: another vocabulary, its template, and its stop token."""
    tokenizer = nano.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(adapter)


def template_in_older_config(adapter: Path, base: Path) -> None:
    """As older trainers saved it: a tokenizer with the template in its config, among others."""
    whole_tokenizer(adapter, base)
    (adapter / "chat_template.jinja").unlink()
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": OWN}]
    (adapter / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))


@pytest.mark.slow
@pytest.mark.parametrize("bring", [template_file, template_in_config, whole_tokenizer, template_in_older_config])
def test_what_an_adapter_brings_is_used_everywhere(
    bring: Any, adapter: Path, base: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """GGUF, merged and lora files, answers and the fidelity check have the adapter's own template, and it is said."""
    bring(adapter, base)
    with caplog.at_level(logging.WARNING):
        _, base_ref, ref = adapter_in(str(adapter), None, store)
    assert "chat template of its own" in caplog.text and ("tokenizer" in caplog.text) == (
        (adapter / "tokenizer.json").is_file()
    )
    stages = Runner(store, should_stop=lambda: False)

    def run(stage: str, **parameters: Any) -> Any:
        return stages.run(stage, "k", parameters, lambda event: None)

    made = {"base": base_ref, "adapter": ref}
    gguf = run("convert", **made, outtype="f32")
    assert GGUFReader(store.local(gguf) / "model.gguf").fields["tokenizer.chat_template"].contents() == OWN
    for package in ("merged", "lora"):
        packaged = store.local(run("package", **made, package=package, hub_id=None))
        assert template_of(packaged) == AutoTokenizer.from_pretrained(packaged).chat_template == OWN
    rows = nano.commit_rows(store, ROWS)
    known = run("reference", **made, heldout=rows, rows=1, prompts=["hello"])
    assert read_reference(store.local(known)).notes.template == OWN
    assert run("fidelity", reference=known, gguf=gguf, canaries=[]).ids_equal
    loaded = load(base, precision="fp32", device="cpu")
    changed = with_tokenizer_of(loaded, ref, store)
    [prompt] = encode_prompts(changed.tokenizer, [ASKED])
    assert changed.tokenizer.decode(prompt).endswith("<|im_start|>[assistant] ")
    spec = GenerationSpec(max_new_tokens=4)
    [said] = run("answer", **made, conversations=[ASKED], spec=spec, precision="fp32", device="cpu").answers
    [expected] = answer(changed, ref, [ASKED], spec=spec, store=store)
    [otherwise] = answer(loaded, ref, [ASKED], spec=spec, store=store)
    assert said == expected != otherwise


NAMED = "{% for m in messages %}<|im_start|>[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>[assistant] {% endif %}"
)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_that_an_adapter_names_are_its_own(
    name: str, adapter: Path, base: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A template of an adapter is written with the special tokens beside it, without a vocabulary too; that is said."""
    (adapter / "chat_template.jinja").write_text(NAMED)
    (adapter / name).write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    _, base_ref, ref = adapter_in(str(adapter), None, store)
    assert "a set of special tokens and a chat template of its own" in caplog.text
    changed = with_tokenizer_of(load(base, precision="fp32", device="cpu"), ref, store).tokenizer
    [prompt] = encode_prompts(changed, [ASKED])
    assert changed.decode(prompt) == "<|im_start|>[user] What is a kettle?<|endoftext|><|im_start|>[assistant] "
    parameters = {"base": base_ref, "adapter": ref, "outtype": "f32"}
    gguf = Runner(store, should_stop=lambda: False).run("convert", "k", parameters, lambda event: None)
    fields = GGUFReader(store.local(gguf) / "model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == changed.convert_tokens_to_ids("<|endoftext|>")


def saved_again(adapter: Path, base: Path) -> None:
    """What most trainers leave: the base's own tokenizer, written again, with a pad token and a length of theirs."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.enable_truncation(64)
    tokenizer.save_pretrained(adapter)


def nothing(adapter: Path, base: Path) -> None:
    pass


@pytest.mark.parametrize("bring", [saved_again, nothing])
def test_what_is_the_bases_is_not_an_adapters_own(
    bring: Any, adapter: Path, base: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer that reads and chats as the base's is not kept beside the adapter, and nothing is said."""
    _, _, plain = adapter_in(str(adapter), None, store)
    bring(adapter, base)
    _, _, ref = adapter_in(str(adapter), None, store)
    assert ref == plain and not any((store.local(ref) / name).is_file() for name in TOKENIZER_FILES)
    assert "of its own" not in caplog.text


def never_ends(adapter: Path, base: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages[7].content }}")


def runs_code(adapter: Path, base: Path) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x", None]}}))


def too_large(adapter: Path, base: Path) -> None:
    tokenizer = nano.tokenizer()
    tokenizer.add_tokens([f"<more{i}>" for i in range(99)])
    tokenizer.save_pretrained(adapter)


def torn(adapter: Path, base: Path) -> None:
    shutil.copyfile(base / "tokenizer_config.json", adapter / "tokenizer_config.json")
    (adapter / "tokenizer.json").write_text((base / "tokenizer.json").read_text()[:500])


def unknown_token(adapter: Path, base: Path) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end of answer|>"}))


def only_added(adapter: Path, base: Path) -> None:
    (adapter / "added_tokens.json").write_text(json.dumps({"<|more|>": 299}))


def other_encoding(adapter: Path, base: Path) -> None:
    (adapter / "chat_template.jinja").write_bytes("{{ 'Größe' }}".encode("latin-1"))


def no_object(adapter: Path, base: Path) -> None:
    (adapter / "tokenizer_config.json").write_text("[]")


def no_text(adapter: Path, base: Path) -> None:
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": ["x"]}))


@pytest.mark.parametrize(
    ("bring", "error", "said"),
    [
        (unknown_token, AdapterMismatch, "which the base does not have"),
        (only_added, AdapterMismatch, "which the base does not have"),
        (other_encoding, ChatTemplateUnusable, "not UTF-8"),
        (no_object, ModelLoadFailed, "not a JSON object"),
        (no_text, ChatTemplateUnusable, "not a string or a list of named templates"),
        (never_ends, ChatTemplateUnusable, "chat template fails"),
        (runs_code, UnsafeModel, "auto_map"),
        (too_large, AdapterMismatch, "embeddings"),
        (torn, InputValidationFailed, "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_door(
    bring: Any, error: type[BackpropError], said: str, adapter: Path, base: Path, store: Store
) -> None:
    """A template that fails, code, more tokens than embeddings, half a file: refused before anything is kept."""
    bring(adapter, base)
    with pytest.raises(error, match=said):
        adapter_in(str(adapter), None, store)
    assert list(store.root.glob("artifacts/*")) == []
