"""What was learned in any form scores in no other: where versions are promoted, moved to another base, or checked."""

from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.row_sets import replay, replay_by_task, unseen
from backprop_core.data.rows_on_base import carried_over
from backprop_core.models import chat_template
from backprop_core.schema.refs import Batch, ChatTemplate, RowsRef
from backprop_core.schema.specs import CurationSpec
from tests.backprop_core import nano
from tests.backprop_core.data.test_preference_splits import Bench, Rows, answered, judged

REDACTS = CurationSpec(personal_data="redact")
CHATML = ChatTemplate(text=nano.CHATML, special=chat_template.named({}))
NUMBERS = range(20)
PLAIN = [answered(f"Whom do I ask about {n}?", f"Ask {n}@example.com.") for n in NUMBERS]
REDACTED = [answered(f"Whom do I ask about {n}?", "Ask [e-mail].") for n in NUMBERS]
PAIRS = [judged(f"Whom do I ask about {n}?", f"Ask {n}@example.com.", "Who knows?") for n in NUMBERS]
REDACTED_PAIRS = [judged(f"Whom do I ask about {n}?", "Who knows?", "Ask [e-mail].") for n in NUMBERS]
FORMS = {"plain": PLAIN, "redacted": REDACTED, "pairs": PAIRS, "redacted pairs": REDACTED_PAIRS}
OTHERS = [answered(f"Whom do I ask about {n}?", "Ask Ann.") for n in NUMBERS]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def rows(bench: Bench, some: Rows) -> RowsRef:
    source = bench.read(some)
    found = source.preferences if "chosen" in some[0] else source.rows
    assert found and found.rows == len(some)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("learned", FORMS)
def test_a_row_is_known_in_every_form(bench: Bench, form: str, learned: str) -> None:
    """The rows that were learned are left out as they are, redacted, and as a preference's answer; no others."""
    known, others = rows(bench, FORMS[learned][:5]), rows(bench, OTHERS)
    left = unseen(rows(bench, FORMS[form]), learned=[known], whole_groups=False, store=bench.store)
    assert left.rows == 15
    assert unseen(others, learned=[known], whole_groups=False, store=bench.store).rows == len(OTHERS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held", FORMS)
def test_what_scores_is_trained_in_no_form(bench: Bench, form: str, held: str) -> None:
    """On another base and in replay, too."""
    earlier, scoring, new = rows(bench, FORMS[form]), rows(bench, FORMS[held][:5]), rows(bench, OTHERS)
    assert carried_over(earlier, CHATML, without=[scoring], store=bench.store).rows == 15
    how: dict[str, Any] = {"heldout": [scoring], "share": 1.0, "passes": 1, "seed": 0, "store": bench.store}
    for mix in (replay(new, [earlier], **how), replay_by_task(new, [[earlier]], least=0, **how)):
        assert mix.rows == len(OTHERS) + 15


def test_rows_besides_are_left_out_by_identity(bench: Bench) -> None:
    """A preference with one answer of another one is another row."""
    some = [judged(row["messages"][0]["content"], "Ask Ann.", "Who knows?") for row in PLAIN]
    pairs, besides = rows(bench, [*PAIRS, *some]), rows(bench, PAIRS)
    assert unseen(pairs, learned=[], besides=[besides], whole_groups=True, store=bench.store).rows == len(some)


def test_a_group_is_known_by_one_of_its_rows(bench: Bench) -> None:
    """Preferences with the question of one that was learned do not score where groups are whole."""
    learned, other = (bench.split(bench.batch(some)) for some in (PAIRS[:15], [*REDACTED_PAIRS]))
    known, every = learned.datasets[0].train, other.datasets[0].train
    left = unseen(every, learned=[known], whole_groups=True, store=bench.store)
    asked = {row["messages"][0]["content"] for row in bench.rows(known)}
    assert not {row["messages"][0]["content"] for row in bench.rows(left)} & asked


def test_watched_rows_that_are_redacted_are_known(bench: Bench) -> None:
    """A watched set that is redacted does not score what the line learned before it was."""
    new = bench.batch([answered(f"Is {n} new?", "It is.") for n in NUMBERS], trained=False)
    watched = Batch(name="watched", task="watched", source=bench.read(REDACTED), curation=REDACTS)
    made = bench.split(new, watched=[watched], learned=[rows(bench, PLAIN[:5])])
    assert (made.heldout["watched"].rows, made.not_scored["watched"]) == (15, 5)
