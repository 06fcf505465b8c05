"""What scores is never trained, in any kind of row: answers and preferences of different nights of a line."""

from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.row_sets import replay, replay_by_task
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import CurationSpec
from backprop_core.store.cache_keys import canonical
from tests.backprop_core.data.test_preference_splits import TASK, Bench, Rows, answered, judged, texts

QUESTIONS = [f"Is {number} even?" for number in range(200)]
ANSWERS = [answered(question, f"Let me see: {question}") for question in QUESTIONS]
BETTER = [judged(question, f"Let me see: {question}", "Who knows?") for question in QUESTIONS]
WORSE = [judged(question, "Who knows?", f"Let me see: {question}") for question in QUESTIONS]
THUMBS = [{**row, "label": number % 2 == 0} for number, row in enumerate(ANSWERS)]
KINDS = {"better": BETTER, "worse": WORSE, "thumbs": THUMBS}
REDACTS = CurationSpec(personal_data="redact")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def said(rows: Rows) -> set[str]:
    """The conversations of rows: written down here again, not asked of the code that is tested."""
    found = set()
    for row in rows:
        for end in [row["chosen"], row["rejected"]] if "chosen" in row else [[]]:
            found.add(canonical({"messages": [*row["messages"], *end]}))
    return found


def night_after(bench: Bench, first: Rows, second: Rows, **more: Any) -> tuple[RowsRef, list[RowsRef]]:
    """What the line learned in its first night, and what is held out in the second one."""
    one = bench.split(bench.batch(first, trained=first is not ANSWERS))
    learned, held = one.datasets[0].train, {task: [rows] for task, rows in one.heldout.items()}
    two = bench.split(bench.batch(second, trained=second is not ANSWERS), held=held, learned=[learned])
    return learned, [*two.heldout.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_does_not_score_as_another_kind(bench: Bench, kind: str) -> None:
    """No held-out preference has a conversation that the line learned as an answer, nor the other way around."""
    for first, second in ((ANSWERS, KINDS[kind]), (KINDS[kind], ANSWERS), (THUMBS, BETTER)):
        learned, heldout = night_after(bench, first, second)
        held = said([row for ref in heldout for row in bench.rows(ref)])
        assert held and not held & said(bench.rows(learned))


def test_questions_that_were_not_learned_score(bench: Bench) -> None:
    """Only the same conversation counts: with other answers, as many preferences score as in a first night."""
    others = [judged(question, "Yes.", "No.") for question in QUESTIONS]
    _, heldout = night_after(bench, ANSWERS, others)
    assert bench.split(bench.batch(others)).heldout[TASK] in heldout


def asked(bench: Bench, ref: RowsRef) -> set[str]:
    return {row["messages"][0]["content"] for row in bench.rows(ref)}


def test_no_longer_chat_begins_with_a_held_out_preference(bench: Bench) -> None:
    """An answer of a preference that scores is not trained as a turn of a longer conversation either."""
    held = bench.split(bench.batch(BETTER)).heldout[TASK]
    more = [{"role": "user", "content": "Are you sure?"}, {"role": "assistant", "content": "Yes."}]
    longer = [{"messages": [*row["messages"], *more]} for row in ANSWERS]
    silent = [{"messages": [row["messages"][0], {**row["messages"][1], "weight": 0}, *more]} for row in ANSWERS]
    made = bench.split(bench.batch(longer, trained=False), held={TASK: [held]})
    [dataset] = made.datasets
    assert not asked(bench, dataset.train) & asked(bench, held)
    assert dataset.not_trained["in_held_out_preference"] >= held.rows - made.heldout["task"].rows > 0
    [free] = bench.split(bench.batch(silent, trained=False), held={TASK: [held]}).datasets
    assert "in_held_out_preference" not in free.not_trained


def test_redacted_rows_are_known_in_another_kind(bench: Bench) -> None:
    """An answer that was learned with an address in it is known in a pair from which the address was redacted."""
    plain = [answered(question, f"Ask {number}@example.com.") for number, question in enumerate(QUESTIONS)]
    pairs = [judged(question, "Ask [e-mail].", "Who knows?") for question in QUESTIONS]
    learned = bench.split(bench.batch(plain, trained=False)).datasets[0].train
    redacting, keeping = (
        bench.split(bench.batch(pairs, curation=spec), learned=[learned]) for spec in (REDACTS, CurationSpec())
    )
    assert not asked(bench, redacting.heldout[TASK]) & asked(bench, learned)
    assert asked(bench, keeping.heldout[TASK]) & asked(bench, learned)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_rows_are_not_replayed_as_another_kind(bench: Bench, kind: str) -> None:
    """Replay leaves out each row with a conversation that scores, and nothing else."""
    new = bench.read([answered("Is this new?", "It is.")]).rows
    answers, some = bench.read(ANSWERS).rows, bench.read(ANSWERS[:50]).rows
    judging, few = bench.read(KINDS[kind]).preferences, bench.read(KINDS[kind][:50]).preferences
    assert judging and few

    def left(earlier: RowsRef, heldout: RowsRef) -> list[int]:
        how: dict[str, Any] = {"heldout": [heldout], "share": 1.0, "passes": 1, "seed": 0, "store": bench.store}
        mixes = [replay(new, [earlier], **how), replay_by_task(new, [[earlier]], least=0, **how)]
        return [len(texts(bench.rows(mix)) - texts(bench.rows(new))) for mix in mixes]

    assert left(answers, few)[1] == left(judging, some)[1] == 150
    assert left(answers, judging) == left(judging, answers) == [0, 0]
    assert left(answers, new) == left(judging, new) == [200, 200]
