"""Preferences pass the curation steps as rows do, and give away no row that scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import load
from backprop_core.data.splits import split
from backprop_core.data.steps import length
from backprop_core.schema.refs import Batch, Curated
from backprop_core.schema.specs import DatasetSpec
from backprop_core.schema.specs.curation import CurationSpec
from tests.backprop_core.data.steps.test_steps import LONG, Bench, Rows, Words, pair

ROWS = [pair(f"Where is order {number}?", f"Order {number} is on its way.") for number in range(12)]


def judged(question: str, better: str, worse: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": better, "rejected": worse}


class MixedBench(Bench):
    """Curation of rows, each in its own format."""

    def curate(self, rows: Rows, **curation: Any) -> Curated:
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        spec = DatasetSpec.model_validate({"path": str(self.path), "format": "mixed", "curation": curation})
        return curate(snapshot(str(self.path), scratch=self.path.parent), spec, store=self.store)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return MixedBench(tmp_path)


def preferences(bench: Bench, made: Curated) -> Rows:
    return load(bench.store.local(made.preferences)) if made.preferences else []


def test_preferences_are_redacted(bench: Bench) -> None:
    """Personal data leaves questions and answers; where only it told these apart, no preference is left."""
    rows = [
        *ROWS,
        judged("Mail ada@example.com", "Sent to ada@example.com.", "No, ada@example.com."),
        judged("Whom?", "Write to ada@example.com.", "Write to bob@example.com."),
    ]
    made = bench.curate(rows, personal_data="redact")
    [left] = preferences(bench, made)
    said = [turn["content"] for turn in (*left["messages"], *left["chosen"], *left["rejected"])]
    assert said == ["Mail [e-mail]", "Sent to [e-mail].", "No, [e-mail]."]
    assert made.dropped == {"no_preference": 1}
    assert made.left_out == {"no_preference": 1, "preferences": 1}


@pytest.mark.parametrize("mode", ["drop", "quarantine"])
def test_preferences_with_personal_data_are_dropped_or_set_apart(bench: Bench, mode: str) -> None:
    """A secret in the worse answer alone is enough."""
    found = bench.curate([*ROWS, judged("Whom?", "Nobody.", "ada@example.com")], personal_data=mode)
    assert preferences(bench, found) == []
    assert (found.dropped.get("personal_data", 0), found.quarantined is not None) == (
        (1, False) if mode == "drop" else (0, True)
    )


def test_preferences_in_other_languages_are_dropped(bench: Bench) -> None:
    """The answers count, too."""
    german = "Die Bestellung ist unterwegs und kommt morgen bei Ihnen an."
    rows = [*ROWS, judged("Ok?", german, german + " Vielleicht auch nicht."), judged("Ok?", "Yes.", "No.")]
    made = bench.curate(rows, languages=["en"])
    assert made.dropped == {"language": 1} and len(preferences(bench, made)) == 1


def test_only_the_better_answer_has_to_be_good(bench: Bench) -> None:
    """Quality rules look at the better answer and at answers with a thumb up."""
    refusal = "I'm sorry, but I can't help with that."
    rows = [
        *ROWS,
        judged("How?", "Like this.", refusal),
        judged("And how?", refusal, "Like this."),
        {**pair("So how?", refusal), "label": False},
        {**pair("How then?", refusal), "label": True},
    ]
    made = bench.curate(rows, quality=["refusal"])
    assert made.dropped == {"refusal": 2} and len(preferences(bench, made)) == 2


def test_both_answers_have_to_fit(bench: Bench) -> None:
    """Tokens are counted of the question with each answer."""
    rows = [
        {"messages": pair("a b")["messages"][:1], "chosen": pair("", better)["messages"][1:], "rejected": worse}
        for better, worse in [("c", pair("", "c d e")["messages"][1:]), ("c d e f", pair("", "c d")["messages"][1:])]
    ]
    found = length.step(Words(), 3, 5)(rows)
    assert [finding and (finding.reason, finding.detail) for finding in found] == [None, ("too_long", "6 tokens")]


def test_near_duplicates_among_preferences_are_dropped(bench: Bench) -> None:
    """Preferences are compared with each other, not with the rows that are trained."""
    rows = [*ROWS, pair(LONG, LONG), judged(LONG, f"{LONG} a", f"{LONG} b"), judged(LONG, f"{LONG} a", f"{LONG} b c")]
    made = bench.curate(rows, near_duplicates=0.8)
    assert len(preferences(bench, made)) == 1 and made.dropped["near_duplicate"] >= 1


def test_preferences_give_away_no_row_that_scores(bench: Bench) -> None:
    """A preference with the words of a held-out row, in either answer, is no part of the dataset, and is counted."""
    question, answer = "What is the code of the red door on the third floor?", "It is seven four two nine one."
    held = bench.curate([pair(question, answer)])
    told = "As everyone knows the code of the red door on the third floor is simple."
    rows = [
        *ROWS,
        judged(question, answer, "Hm."),
        judged("Tell me", "No.", told),
        judged("Tell me more", "No.", "Maybe."),
    ]
    source = bench.curate(rows)
    assert len(preferences(bench, source)) == 3

    def left(curation: CurationSpec) -> tuple[Rows, dict[str, int]]:
        batch = Batch(name="a", task="a", source=source, heldout=held.rows, curation=curation)
        [made] = split([batch], heldout_max=100, store=bench.store).datasets
        return (load(bench.store.local(made.preferences)) if made.preferences else []), made.dropped

    kept, counts = left(CurationSpec())
    assert (len(kept), counts) == (2, {"preferences": 2, "preference_held_out": 1})
    kept, counts = left(CurationSpec(decontaminate=8))
    assert (len(kept), counts) == (1, {"preferences": 1, "preference_held_out": 2})
