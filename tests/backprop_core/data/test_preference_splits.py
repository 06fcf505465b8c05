"""Preferences that are trained: split as other rows are, by question, and what scores is trained in no form."""

from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import index, load
from backprop_core.data.row_sets import apart
from backprop_core.data.splits import split
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.refs import Batch, Curated, DatasetRef, RowsRef, Split
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical, stage_parts

Rows = list[dict[str, Any]]
TASK = "task.preferences"


def answered(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def judged(question: str, better: str, worse: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": better, "rejected": worse}


ANSWERS = [answered(f"Is {number} a number?", "Yes.") for number in range(100)]
PAIRS = [judged(f"Is {number} even?", f"Let me see {number}.", "Who knows?") for number in range(100)]
THUMBS = [{**answered(f"Is {number} odd?", "Maybe."), "label": number % 3 == 0} for number in range(30)]


class Bench:
    """A store, and datasets written beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.store, self.files = directory, Store(directory / "store"), 0

    def read(self, rows: Rows) -> Curated:
        self.files += 1
        path = self.directory / f"{self.files}.jsonl"
        path.write_text("".join(canonical(row) + "\n" for row in rows), encoding="utf-8")
        spec = DatasetSpec(path=str(path), format="mixed")
        return curate(snapshot(str(path), scratch=self.directory), spec, store=self.store)

    def batch(self, rows: Rows, *, task: str = "task", trained: bool = True, **more: Any) -> Batch:
        source = self.read(rows)
        return Batch(name="data", task=task, source=source, trains_preferences=trained, **more)

    def split(self, *batches: Batch, **more: Any) -> Split:
        return split(batches, heldout_max=1000, store=self.store, **more)

    def dataset(self, rows: Rows, **more: Any) -> DatasetRef:
        [made] = self.split(self.batch(rows, **more)).datasets
        return made

    def rows(self, ref: RowsRef) -> Rows:
        return load(self.store.local(ref))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def texts(rows: Rows) -> set[str]:
    return set(map(canonical, rows))


def test_all_kinds_are_trained_and_counted(bench: Bench) -> None:
    """Each row is trained or scores, in its own kind; a tenth of the preferences scores a task of its own."""
    every = bench.split(bench.batch([*ANSWERS, *PAIRS, *THUMBS]))
    [made] = every.datasets
    assert made.tasks == ["task", TASK] and set(every.heldout) == {"task", TASK}
    trained, answers, judging = (bench.rows(ref) for ref in (made.train, every.heldout["task"], every.heldout[TASK]))
    assert len(trained) + len(answers) + len(judging) == 230
    assert not any("chosen" in row or "label" in row for row in answers)
    assert all("chosen" in row or "label" in row for row in judging) and 5 <= len(judging) <= 30
    assert made.pairs == sum("chosen" in row for row in trained)
    assert made.ratings == sum("label" in row for row in trained)
    assert made.dropped == {} and made.not_trained == {"held_out": len(answers) + len(judging)}


def test_without_a_loss_nothing_changes(bench: Bench) -> None:
    """Preferences that are not trained are kept apart, as before, and no part of the key says that they could be."""
    batch = bench.batch([*ANSWERS, *PAIRS], trained=False)
    made = bench.split(batch)
    assert list(made.heldout) == ["task"] and made.datasets[0].dropped == {"preferences": 100}
    assert made.datasets[0].preferences and made.datasets[0].pairs == 0
    asked = {"batches": [batch], "watched": [], "held": {}, "learned": [], "heldout_max": 1000}
    assert "preferences" not in canonical(stage_parts("split", asked)).replace('"preferences":"', "")


def test_preferences_alone_are_a_dataset(bench: Bench) -> None:
    """Without a row that has an answer to learn, the task of the preferences is the only one."""
    every = bench.split(bench.batch(PAIRS))
    [made] = every.datasets
    assert made.tasks == [TASK] and list(every.heldout) == [TASK]
    assert made.train.rows + every.heldout[TASK].rows == 100


def test_one_question_stays_on_one_side(bench: Bench) -> None:
    """Preferences with the same question are trained together or score together, in this night and the next."""
    several = [judged(f"Is {number} even?", f"Answer {one}.", "No.") for number in range(100) for one in range(3)]
    first = bench.split(bench.batch(several))

    def asked(ref: RowsRef) -> set[str]:
        return {row["messages"][0]["content"] for row in bench.rows(ref)}

    held = first.heldout[TASK]
    assert asked(held) and not asked(held) & asked(first.datasets[0].train)
    more = [judged(f"Is {number} even?", f"Answer {number}.", "Never.") for number in range(200)]
    night = bench.split(bench.batch(more), held={TASK: [held]}, learned=[first.datasets[0].train])
    assert not asked(night.datasets[0].train) & asked(held)
    assert not asked(night.heldout[TASK]) & asked(first.datasets[0].train)
    assert texts(bench.rows(held)) <= texts(bench.rows(night.heldout[TASK]))


def test_one_question_chooses_or_scores(bench: Bench) -> None:
    """Held-out preferences with one question all choose (λ, how much of a change is taken), or all score."""
    several = [judged(f"Is {number} even?", f"Yes, {n}.", "No!") for number in range(300) for n in range(4)]
    held = bench.split(bench.batch(several)).heldout[TASK]
    sides = [bench.rows(apart(held, to_choose_by=side, store=bench.store)) for side in (True, False)]
    chosen, scored = ({row["messages"][0]["content"] for row in rows} for rows in sides)
    assert chosen and scored and not chosen & scored
    assert [len(rows) for rows in sides] == [4 * len(chosen), 4 * len(scored)]


def test_no_answer_of_a_held_out_preference_is_trained(bench: Bench) -> None:
    """A row with the question and either answer of a preference that scores is no part of the training."""
    held = bench.split(bench.batch(PAIRS)).heldout[TASK]
    [first, second, *_] = bench.rows(held)
    told = [{"messages": [*one["messages"], *one[side]]} for one, side in ((first, "chosen"), (second, "rejected"))]
    free = answered(first["messages"][0]["content"], "Something else.")
    night = bench.split(bench.batch([*ANSWERS, *told, free], trained=False), held={TASK: [held]})
    [made] = night.datasets
    assert made.not_trained["in_held_out_preference"] == 2
    assert canonical(free) in texts(bench.rows(made.train)) | texts(bench.rows(night.heldout["task"]))


def test_preferences_give_away_no_row_that_scores(bench: Bench) -> None:
    """A pair of which an answer is a held-out row is not trained, and is counted."""
    held = bench.read(ANSWERS[:10]).rows
    giving = judged("Is 3 a number?", "Yes.", "Hm.")
    made = bench.dataset([*ANSWERS[10:], *PAIRS, giving], heldout=held)
    assert made.dropped == {"preference_held_out": 1}
    assert not any(row["messages"][0]["content"] == "Is 3 a number?" for row in bench.rows(made.train))


def test_a_held_out_file_has_preferences_too(bench: Bench) -> None:
    """The preferences of a held-out file score instead of a tenth of the dataset's own."""
    own = [judged(f"Is {number} red?", "It is.", "It may be.") for number in range(12)]
    held = bench.read([*ANSWERS[:10], *own])
    every = bench.split(bench.batch([*ANSWERS[10:], *PAIRS], heldout=held.rows, heldout_preferences=held.preferences))
    assert every.heldout[TASK].rows == 12 and every.datasets[0].pairs == 100


def test_a_curriculum_has_preferences_between_its_rows(bench: Bench) -> None:
    """In the file's order of the answers, preferences are spread evenly."""
    spec = CurationSpec(curriculum="file")
    path = bench.directory / "ordered.jsonl"
    path.write_text("".join(canonical(row) + "\n" for row in [*ANSWERS, *PAIRS]), encoding="utf-8")
    dataset = DatasetSpec(path=str(path), format="mixed", curation=spec)
    source = curate(snapshot(str(path), scratch=bench.directory), dataset, store=bench.store)
    batch = Batch(name="data", task="task", source=source, trains_preferences=True, curation=spec)
    rows = bench.rows(bench.split(batch).datasets[0].train)
    asked = [int(row["messages"][0]["content"].split()[1]) for row in rows if "chosen" not in row]
    assert asked == sorted(asked)
    kinds = ["chosen" in row for row in rows]
    assert 0.3 < sum(kinds[: len(kinds) // 2]) / (len(kinds) // 2) < 0.7


def test_a_task_of_the_same_name_is_refused(bench: Bench) -> None:
    """Answers and preferences never score one task."""
    with pytest.raises(ConfigInvalid, match="held-out preferences of another dataset"):
        bench.split(bench.batch([*ANSWERS, *PAIRS]), bench.batch(ANSWERS, task=TASK, trained=False))


def test_the_questions_group_is_kept_with_the_rows(bench: Bench) -> None:
    """The group of a preference is in the artifact, so that later nights of the line know it."""
    train = index(bench.dataset(PAIRS).train, bench.store)
    assert train.entries["group"].all() and len(set(train.entries["group"].tolist())) == len(train)


def by_customer(bench: Bench, rows: Rows) -> Batch:
    """A batch whose rows of one customer stay together."""
    path = bench.directory / f"customers-{bench.files}.jsonl"
    bench.files += 1
    path.write_text("".join(canonical(row) + "\n" for row in rows), encoding="utf-8")
    spec = DatasetSpec(path=str(path), format="mixed", group_by="customer")
    source = curate(snapshot(str(path), scratch=bench.directory), spec, store=bench.store)
    return Batch(name="data", task="task", source=source, trains_preferences=True)


def of_customer(customer: int, question: int, *, night: int = 0) -> dict[str, Any]:
    return judged(f"Is {question} even?", f"Yes, {customer}, {night}.", "No.") | {"customer": f"c{customer}"}


def both(bench: Bench, ref: RowsRef) -> tuple[set[str], set[str]]:
    """The questions and the customers of preferences."""
    rows = bench.rows(ref)
    return (
        {row["messages"][0]["content"] for row in rows},
        {row["chosen"][0]["content"].split(", ")[1] for row in rows},
    )


def test_questions_and_groups_stay_on_one_side(bench: Bench) -> None:
    """With `group_by`, neither a question nor a group has preferences on both sides, in this night and the next."""
    first = bench.split(by_customer(bench, [of_customer(c, q) for c in range(200) for q in (c // 2, 200 + c)]))
    held, learned = first.heldout[TASK], first.datasets[0].train
    for one, other in zip(both(bench, held), both(bench, learned), strict=True):
        assert one and other and not one & other
    chained = [of_customer(c + 1000, c // 2, night=1) for c in range(200)]
    again = [of_customer(c, q, night=2) for c in range(200) for q in (c + 1000,)]
    night = bench.split(by_customer(bench, [*chained, *again]), held={TASK: [held]}, learned=[learned])
    for scoring in (held, night.heldout[TASK]):
        for rows in (learned, night.datasets[0].train):
            for one, other in zip(both(bench, scoring), both(bench, rows), strict=True):
                assert not one & other
    assert night.datasets[0].train.rows > 200 and texts(bench.rows(held)) <= texts(bench.rows(night.heldout[TASK]))
