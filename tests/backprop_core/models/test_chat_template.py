"""A chat template is tried before anything is loaded, and what transformers renders is not refused."""

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from backprop_core.errors import ChatTemplateUnusable
from backprop_core.models import chat_template
from backprop_core.models.chat_template import TookTooLong, limited

TOKENS = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% break %}{% endif %}{% endfor %}",
        "{% set ns = namespace(found=false) %}{% set ns.found = true %}{{ dict(a=ns.found) | tojson(indent=2) }}",
        "{{ strftime_now('%Y') }}{{ date_string }}{% if tools is not none %}{{ raise_exception('tools') }}{% endif %}",
        "{{ bos_token + messages[0].content + eos_token }}{{ 'x' if add_generation_prompt }}",
    ],
)
def test_what_transformers_renders_passes(template: str) -> None:
    """Its tags, filters, functions and special tokens are all here."""
    render_jinja_template([[chat_template.ASKED]], chat_template=template, bos_token="<s>", eos_token="</s>")
    chat_template.check(template, TOKENS)


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{{ 1 / 0 }}", "{{ ''.__class__.mro() }}", "{{ messages.append(1) }}", "{{ no_token + 'a' }}"],
)
def test_what_fails_is_refused(template: str) -> None:
    """Wrong syntax, a way out of the sandbox, a change of its input, a token that no tokenizer has."""
    with pytest.raises(ChatTemplateUnusable, match="the chat template fails"):
        chat_template.check(template, TOKENS)


def test_a_token_that_no_file_names_is_made_up() -> None:
    """It may be its class's own; an empty text in its place could make a template fail that works."""
    chat_template.check("{{ bos_token + eos_token }}", {"bos_token": None})
    chat_template.check("{{ raise_exception('empty') if not sep_token }}", {})


def test_what_loops_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that would run for hours is stopped after its time."""
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    with pytest.raises(ChatTemplateUnusable, match=r"still running after 0\.2 s"):
        chat_template.check(LOOP, TOKENS)


def test_a_limit_that_is_kept_leaves_no_trace() -> None:
    """A block that ends in time is not interrupted afterwards."""
    with limited(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(TookTooLong), limited(0.05):
        while True:
            time.sleep(0.01)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages|map(attribute='content') }}",
        "{{ raise_exception }}",
        "{% for m in messages %}{{ m.items }}{% endfor %}",
        "{{ dict }}",
    ],
)
def test_a_template_that_writes_an_address_is_refused(template: str) -> None:
    """What is another text in each process is not trained: a template that forgot a join or a call is named."""
    with pytest.raises(ChatTemplateUnusable, match="differs in each process"):
        chat_template.check(template, {})
