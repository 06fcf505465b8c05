"""The base: known by its digest, refused when it is not complete or would run code."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from backprop_core.errors import ChatTemplateMissing, ChatTemplateUnusable, InputNotFound, ModelLoadFailed, UnsafeModel
from backprop_core.models import base as bases
from backprop_core.schema.specs import ModelSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return nano.build(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(original, tmp_path):
    return shutil.copytree(original, tmp_path / "base")


@pytest.fixture
def resolve(tmp_path):
    store = Store(tmp_path / "store")
    return lambda name: bases.resolve(ModelSpec(name=str(name)), store)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_digest_is_of_the_content(base, resolve, tmp_path):
    """The same files elsewhere are the same base; a changed template is another one."""
    first = resolve(base)
    moved = shutil.copytree(base, tmp_path / "moved")
    (moved / "README.md").write_text("not part of the model")
    assert resolve(moved).digest == first.digest
    (moved / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert resolve(moved).digest != first.digest


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hosts", "a/b.safetensors"])
def test_an_index_names_files_beside_it(base, resolve, name):
    """A list of weights that leads out of the model's directory is refused before any of them is read."""
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelLoadFailed, match="not in the same directory"):
        resolve(base)


def test_a_base_that_changed_under_a_run_is_refused(base, resolve, tmp_path):
    """A run goes on with the base it started from, or not at all."""
    ref = resolve(base)
    store = Store(tmp_path / "store")
    assert bases.local(ref, store) == base
    edit(base / "config.json", rope_theta=5.0)
    with pytest.raises(ModelLoadFailed, match="has changed"):
        bases.local(ref, store)


@pytest.mark.parametrize(
    "key, value",
    [
        ("auto_map", {"AutoModel": "x.Y"}),
        ("_attn_implementation_internal", "x/y"),
        ("nested", {"trust_remote_code": True}),
    ],
)
def test_a_config_that_names_code_is_refused(base, resolve, key, value):
    """No key that makes a loader import something, at any depth."""
    edit(base / "config.json", **{key: value})
    with pytest.raises(UnsafeModel, match=r"config\.json"):
        resolve(base)


def test_pickled_weights_are_refused(base, resolve):
    """A base with only a .bin is never opened."""
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UnsafeModel, match="pickled"):
        resolve(base)


@pytest.mark.parametrize(
    "missing, error",
    [
        ("config.json", ModelLoadFailed),
        ("model.safetensors", ModelLoadFailed),
        ("tokenizer.json", ModelLoadFailed),
        ("chat_template.jinja", ChatTemplateMissing),
    ],
)
def test_what_is_missing_is_named(base, resolve, missing, error):
    """A base without weights, tokenizer, config or template says so and how to mend it."""
    (base / missing).unlink()
    with pytest.raises(error) as caught:
        resolve(base)
    assert caught.value.hint


def test_special_tokens_have_a_file_of_their_own(base, resolve):
    """A template may ask for what only `special_tokens_map.json` names, by that text, as transformers renders it."""
    template = "{% if bos_token != '<begin>' %}{{ raise_exception(bos_token) }}{% endif %}{{ bos_token + 'a' }}"
    (base / "chat_template.jinja").write_text(template)
    with pytest.raises(ChatTemplateUnusable):
        resolve(base)
    (base / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<begin>"}}))
    assert resolve(base)
    ours = AutoTokenizer.from_pretrained(base)
    assert ours.apply_chat_template([{"role": "user", "content": "b"}], tokenize=False) == "<begin>a"


def test_none_of_several_templates_is_the_default(base, resolve):
    """transformers would not choose, nor do we; one that is called `default` is taken wherever it stands."""
    (base / "chat_template.jinja").unlink()
    named = [{"name": "rag", "template": "{{ 1 / 0 }}"}, {"name": "tool_use", "template": "a"}]
    edit(base / "tokenizer_config.json", chat_template=named)
    with pytest.raises(ChatTemplateUnusable, match="rag, tool_use"):
        resolve(base)
    with pytest.raises(ValueError, match="no default"):
        AutoTokenizer.from_pretrained(base).get_chat_template()
    edit(base / "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": "a"}])
    assert resolve(base)


def test_no_such_directory(tmp_path, resolve):
    """A path that does not exist is not taken for a hub id."""
    with pytest.raises(InputNotFound):
        resolve(tmp_path / "nowhere")
