"""Chat templates see one fixed day: what is trained, scored, asked and compared does not depend on when."""

import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from backprop_core.data import chat_encoding, chat_rendering, token_cache
from backprop_core.errors import ChatTemplateUnusable
from backprop_core.models import base as bases
from backprop_core.models import chat_template
from backprop_core.models.loading import load
from backprop_core.schema.refs import BaseRef, RowsRef
from backprop_core.schema.specs import ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digest_of, stage_key
from tests.backprop_core import nano

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = {  # how templates of these models ask for the day
    "llama-3": "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{{ 'Today Date: ' + date_string }}",
    "smollm3": "{% set today = strftime_now('%d %B %Y') %}{{ 'Today Date: ' ~ today }}",
    "mistral-small-3": "{% set today = strftime_now('%Y-%m-%d') %}{{ 'The current date is ' + today + '.' }}",
    "granite-3": "{{ \"Today's Date: \" + strftime_now('%B %d, %Y') + '.' }}",
    "gpt-oss": "{{ 'Current date: ' + strftime_now('%Y-%m-%d') + '\n' }}",
    "all of it": "{{ strftime_now('%c %s %%s %H:%M:%S %j %Z|%z %a %A') }}",
    "in a macro": "{% macro day(how) %}{{ strftime_now(how) }}{% endmacro %}{{ day('%Y') }}",
}
MESSAGES = [{"role": "user", "content": "Say kettle"}, {"role": "assistant", "content": "kettle!"}]
OTHER_DAYS = [datetime(2031, 2, 3, 4, 5, 6), datetime.now() + timedelta(days=40)]


def on_the_day(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers takes for now, in the templates that it has not compiled yet."""

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return now

    chat_template_utils._compile_jinja_template.cache_clear()
    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.fixture(params=DATED)
def dated(request: pytest.FixtureRequest) -> Any:
    fast = nano.tokenizer()
    fast.chat_template = DATED[request.param] + TURNS
    return fast


def test_a_template_writes_what_transformers_writes_on_that_day(dated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendered on the fixed day by transformers itself, a conversation is the same text, ids and all."""
    on_the_day(chat_template.NOW, monkeypatch)
    monkeypatch.setenv("TZ", "UTC")
    expected = dated.apply_chat_template(MESSAGES, tokenize=False, date_string=chat_template.TODAY)
    assert chat_rendering.render(dated, {"messages": MESSAGES}) == expected
    [example] = chat_encoding.encode(dated, [{"messages": MESSAGES}], max_length=999)
    assert example.ids == dated(expected, add_special_tokens=False).input_ids


@pytest.mark.parametrize("day", OTHER_DAYS)
def test_the_day_of_the_machine_is_nowhere(dated: Any, day: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever day it is, every way to write a conversation gives the same."""
    before = ways(dated)
    theirs = dated.apply_chat_template(MESSAGES, tokenize=False)
    on_the_day(day, monkeypatch)
    assert ways(dated) == before
    assert dated.apply_chat_template(MESSAGES, tokenize=False) != theirs  # the control: left to itself it changes


def ways(fast: Any) -> list[Any]:
    """A conversation in training, in a prompt, in generation and as a whole."""
    row = {"messages": MESSAGES}
    return [
        chat_encoding.encode(fast, [row], max_length=999),
        chat_rendering.render(fast, row),
        chat_rendering.render_prompt(fast, MESSAGES[:1]),
        chat_encoding.encode_prompts(fast, [MESSAGES[:1]]),
        chat_encoding.stop_id(fast),
    ]


def test_not_by_time_zone_or_language(tmp_path: Path) -> None:
    """Another process, in another zone, locale and hash seed, writes the same bytes."""
    code = (
        "import sys; from backprop_core.models.chat_template import render; print(render(sys.argv[1], [], special={}, "
    )
    code += "add_generation_prompt=False))"
    environments = [{"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1"}, {"TZ": "America/Adak"}]
    written = {
        subprocess.run(
            [sys.executable, "-c", code, DATED["all of it"]],
            env={**os.environ, **environment},
            capture_output=True,
            check=True,
        ).stdout
        for environment in environments
    }
    assert len(written) == 1 and b"1721952000 %s 00:00:00 208" in next(iter(written))


@pytest.mark.parametrize("template", ["{{ [1, 2] | random }}", "{{ lipsum() }}", "{{ lipsum(n=1, html=False) }}"])
def test_nothing_is_drawn(template: str) -> None:
    """What jinja2 draws anew in each process is no part of a template's language."""
    with pytest.raises(ChatTemplateUnusable, match=r"random|lipsum"):
        chat_template.check(template, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ dict.mro() }}",
        "{{ dict.__subclasses__() }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace.__init__.__globals__.os }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ dict.fromkeys.__func__.__globals__.os }}",
    ],
)
def test_the_sandbox_is_as_tight_as_that_of_transformers(template: str) -> None:
    """What a template may call leads to nothing of Python's own."""
    with pytest.raises(ChatTemplateUnusable, match="the chat template fails"):
        chat_template.render(template, MESSAGES, special={}, add_generation_prompt=False)


def test_a_block_of_the_assistant_is_a_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set between generation marks ends there, and dict and namespace work, as transformers has it."""
    fast = nano.tokenizer()
    fast.chat_template = (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
        "{% set ns = namespace(self=3) %}{% set ns.b = dict(c=4) %}{{ ns.self ~ ns.b ~ dict.fromkeys('ab', 5) }}"
    )
    assert chat_rendering.render(fast, {"messages": MESSAGES}) == fast.apply_chat_template(MESSAGES, tokenize=False)


# Where the day is said, and what it does to keys


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def with_template(directory: Path, template: str) -> Path:
    nano.build(directory)
    (directory / "chat_template.jinja").write_text(template)
    return directory


def test_the_base_says_the_day_that_its_template_writes(tmp_path: Path, store: Store) -> None:
    """A template that asks for the day has it in its record; one that does not has none there."""
    plain = bases.resolve(ModelSpec(name=str(nano.build(tmp_path / "plain"))), store)
    assert plain.day is None
    for number, template in enumerate(DATED.values()):
        base = with_template(tmp_path / str(number), template + TURNS)
        assert bases.resolve(ModelSpec(name=str(base)), store).day == "2024-07-26"


def test_a_key_has_the_day_where_it_matters(tmp_path: Path, store: Store) -> None:
    """What was trained on the day of its run is not taken for what is trained on the fixed one; all else is kept."""
    base = with_template(tmp_path / "base", DATED["smollm3"] + TURNS)
    now = bases.resolve(ModelSpec(name=str(base)), store)
    old = BaseRef.model_validate_json(now.model_dump_json(exclude={"day"}))
    rest = {"rows": RowsRef(digest="b" * 64, rows=1), "spec": TrainSpec(), "start": None}
    assert stage_key("train", {"base": now, **rest}) != stage_key("train", {"base": old, **rest})
    assert bases.dated(old) == now
    shutil.rmtree(base)
    assert bases.dated(old) == old
    gone = BaseRef(name="owner/name", revision="c" * 40, digest="a" * 64)
    assert bases.dated(gone) == gone


def test_tokens_of_another_day_are_not_taken(tmp_path: Path, store: Store) -> None:
    """Tokens kept under a template with a clock are found by its day; those of any other template by what they were."""
    rows = nano.commit_rows(store, nano.chats(3))
    for name, template in {"plain": TURNS, "dated": DATED["granite-3"] + TURNS}.items():
        directory = with_template(tmp_path / name, template)
        base = load(directory, precision="fp32", device="cpu")
        before = {  # what the key was made of before templates had a clock of ours
            "version": [token_cache.VERSION, *map(version, token_cache.LIBRARIES)],
            "rows": rows.digest,
            "tokenizer": bases.tokenizer_digest(directory, store),
            "template": template,
            "max_length": 99,
        }
        assert (token_cache.key_of(base, rows, 99, store) == digest_of(before)) == (name == "plain")
        ref, _ = token_cache.load(base, rows, max_length=99, store=store)
        assert store.record(ref.digest)["day"] == (None if name == "plain" else "2024-07-26")
