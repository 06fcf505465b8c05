"""A row that the base's chat template refuses is a bad row: dropped alone, with its place, and counted as such."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import load
from backprop_core.data.template_refusals import Refusals
from backprop_core.errors import ChatTemplateUnusable, InputValidationFailed
from backprop_core.models import chat_template
from backprop_core.schema.refs import ChatTemplate, Curated
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from tests.backprop_core import nano

ALTERNATES = (  # as Mistral's and Gemma's do
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if '<tool>' in m.content %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = nano.CHATML.replace(  # consecutive turns of one role become one
    "<|im_start|>{{ m['role'] }}\n",
    "{% if loop.first or loop.previtem.role != m.role %}<|im_start|>{{ m.role }}\n{% endif %}",
)
STUMBLES = "{% if messages[0].role == 'system' %}{{ messages[9].content }}{% endif %}" + nano.CHATML  # without a word


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text=text, special=chat_template.named({}))


def row(*contents: str, roles: str = "user assistant") -> dict[str, Any]:
    cycle = roles.split() * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(cycle, contents, strict=False)]}


GOOD = [row(f"question {number}", f"answer {number}") for number in range(400)]
SYSTEM = row("be brief", "a", "b", roles="system user assistant")
TWICE = row("a", "b", "c", roles="user assistant assistant")
TOOL = row("use <tool>", "b")


class Bench:
    def __init__(self, directory: Path) -> None:
        self.file, self.store = directory / "data.jsonl", Store(directory / "store")

    def __call__(self, rows: list[dict[str, Any]], text: str | None = ALTERNATES, **spec: Any) -> Curated:
        self.file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        asked = DatasetSpec(path=str(self.file), **spec)
        source = snapshot(asked.path, scratch=self.file.parent)
        return curate(source, asked, template=template(text) if text else None, store=self.store)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("bad", [SYSTEM, TWICE, TOOL], ids=["system", "twice", "by its words"])
def test_a_row_that_is_refused_is_dropped_alone(bench: Bench, bad: dict[str, Any]) -> None:
    """One row among many is left out and counted; the others, and the template, are as good as before."""
    found = bench([*GOOD[:41], bad, *GOOD[41:]])
    assert (found.read, found.dropped, found.rows.rows) == (401, {"refused_by_template": 1}, 400)
    assert bad not in load(bench.store.local(found.rows))


def test_too_many_are_an_error_with_their_places(bench: Bench) -> None:
    """They count in max_bad_rows as malformed rows do, and the error has their own lines and the template's words."""
    rows = [*GOOD[:41], SYSTEM, *GOOD[41:90], TWICE]
    with pytest.raises(InputValidationFailed) as caught:
        bench(rows)
    assert "refuses 2 of 92 rows: line 42: the chat template fails: System role not supported" in caught.value.message
    assert "line 92: the chat template fails: Conversation roles must alternate" in caught.value.message
    assert "max_bad_rows" in caught.value.hint
    assert bench(rows, max_bad_rows=0.03).dropped == {"refused_by_template": 2}
    with pytest.raises(InputValidationFailed, match="2 of 401 rows are malformed: line 400: "):
        bench([*GOOD[:399], {"messages": 7}, TOOL], max_bad_rows=0.001)


def test_where_all_are_refused_it_says_so(bench: Bench) -> None:
    """Then it is the data that do not fit this base, and the error has the template's own words."""
    with pytest.raises(
        InputValidationFailed, match=r"the base's chat template refuses all 20 rows: line 1: .*System role"
    ):
        bench([SYSTEM] * 20)


def test_a_template_that_fails_without_a_word(bench: Bench) -> None:
    """An exception that it does not mean is a refusal too, and so is a turn that it merges with the one before."""
    found = bench([*GOOD, SYSTEM], STUMBLES)
    assert found.dropped == {"refused_by_template": 1} and found.rows.rows == 400
    merged = bench([*GOOD, TWICE], MERGES)
    assert merged.dropped == {"refused_by_template": 1} and merged.rows.rows == 400


def test_text_and_rows_without_an_answer_are_not_asked(bench: Bench) -> None:
    """Raw text has no template, and a row that teaches nothing is `empty`, whatever a template says."""
    assert bench([{"text": f"<tool> {n}"} for n in range(20)]).dropped == {}
    unanswered = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    assert bench([*GOOD, unanswered]).dropped == {"empty": 1}


def test_a_template_that_refuses_nothing_changes_nothing(bench: Bench) -> None:
    """With a template that takes every row, or with none, the artifact is the same."""
    assert bench([*GOOD, SYSTEM], nano.CHATML) == bench([*GOOD, SYSTEM], None)


def test_the_template_is_in_the_key(bench: Bench) -> None:
    """What one base's template refuses is not what another's does."""
    bench(GOOD)
    rest = {"source": snapshot(str(bench.file), scratch=bench.file.parent), "spec": DatasetSpec(path="x")}
    keys = {stage_key("curate", {**rest, "template": template(text)}) for text in (ALTERNATES, nano.CHATML, MERGES)}
    assert len(keys) == 3


def test_a_template_that_loops_on_a_row_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the template that is to blame then, not the row."""
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    loops = "{% if 'LOOP' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    loops += "{% endfor %}{% endif %}{# raise_exception #}" + nano.CHATML
    with pytest.raises(ChatTemplateUnusable, match=r"still running after 0\.3 s"):
        bench([*GOOD, row("LOOP", "a")], loops)


def test_a_template_that_cannot_refuse_costs_next_to_nothing() -> None:
    """Rows of roles that were written once are not written again where the template has no words to refuse with."""
    rows, calls = GOOD * 50, Refusals(template(nano.CHATML))
    begun = time.process_time()
    assert list(calls(rows)) == rows
    assert time.process_time() - begun < 2
