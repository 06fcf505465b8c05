"""The gate: better on average and clearly worse nowhere, or nothing goes live."""

import json
import random

import numpy as np
import pytest

from backprop_core.evaluation.bootstrap import bounds, spread
from backprop_core.evaluation.gate import fewest, gain, gate, too_few_passed, too_little, verdict
from backprop_core.evaluation.hits import Hits, hits
from backprop_core.evaluation.metrics import commit
from backprop_core.schema.gate_report import CanaryVerdict, GateReport
from backprop_core.schema.refs import Answers, Generated, Scores
from backprop_core.schema.specs import CanarySpec, GateSpec, MinRowsSpec
from backprop_core.store.artifacts import Store

TOKENS = 10


class Bench:
    """Scores as the stage `evaluate` commits them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def scores(self, correct: list[int], loss: float = 1.0) -> Scores:
        lines = [
            {"row": row, "loss": loss, "tokens": TOKENS, "correct": value, "exact": value == TOKENS}
            for row, value in enumerate(correct)
        ]
        with self.store.begin("scores") as directory:
            (directory / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            return self.store.commit(
                directory,
                Scores,
                record={},
                rows=len(correct),
                tokens=TOKENS * len(correct),
                loss=1.0,
                token_accuracy=sum(correct) / (TOKENS * len(correct)),
                exact_match=sum(value == TOKENS for value in correct) / len(correct),
            )

    def gate(self, candidate, champion, base, *, watch=(), metric="token_accuracy", **spec) -> GateReport:
        rows = [
            row and {task: self.scores(correct) for task, correct in row.items()} for row in (candidate, champion, base)
        ]
        return consistent(gate(*rows, watch=watch, metric=metric, spec=GateSpec(**spec), store=self.store))


def consistent(report: GateReport) -> GateReport:
    """A report says by its numbers, too, whether it accepts: one in which only the verdict was edited does not pass."""
    assert report.passes == report.accepted
    edited = report.model_copy(update={"accepted": True})
    assert edited.passes == report.accepted
    if not edited.passes:
        assert "edited" in edited.refusal and edited.reason not in edited.refusal
    if not report.accepted:
        assert report.refusal == f"was rejected by the gate: {report.reason}"
    return report


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(Store(tmp_path))


def flat(value: int, rows: int = 100) -> list[int]:
    return [value] * rows


def test_better_everywhere_is_accepted(bench):
    """A candidate that is above champion and base on every task goes live."""
    report = bench.gate({"a": flat(8), "b": flat(7)}, {"a": flat(7), "b": flat(6)}, {"a": flat(2), "b": flat(2)})
    assert report.accepted and report.against == "champion"
    assert (report.average, report.rival_average, report.base_average) == pytest.approx((0.75, 0.65, 0.2))


def test_nothing_learned_is_rejected(bench):
    """The champion's own scores do not replace it: doing nothing wins a draw."""
    report = bench.gate({"a": flat(7)}, {"a": flat(7)}, {"a": flat(2)})
    assert not report.accepted and "not above the 70.0 % of the champion" in report.reason


def test_the_base_can_win(bench):
    """A candidate above the champion, but not above the untouched base, is rejected."""
    report = bench.gate({"a": flat(5)}, {"a": flat(4)}, {"a": flat(6)})
    assert not report.accepted and "of the base" in report.reason


def test_one_task_clearly_worse_is_rejected(bench):
    """However much the average gains, no task may clearly lose more than allowed; the report says which."""
    report = bench.gate({"a": flat(6), "b": flat(9)}, {"a": flat(7), "b": flat(1)}, {"a": flat(2), "b": flat(1)})
    assert not report.accepted and report.reason.startswith("a fell by 10.0 points")
    assert [verdict.worse for verdict in report.tasks] == [True, False]
    assert bench.gate(
        {"a": flat(6), "b": flat(9)}, {"a": flat(7), "b": flat(1)}, {"a": flat(2), "b": flat(1)}, max_drop=0.1
    ).accepted


def test_a_watched_task_counts_for_the_rule_but_not_for_the_average(bench):
    """General skills may not be lost; gaining them is no reason to go live."""
    lost = bench.gate({"a": flat(9), "w": flat(4)}, None, {"a": flat(1), "w": flat(8)}, watch=["w"])
    assert not lost.accepted and lost.reason.startswith("w fell") and lost.against == "base"
    gained = bench.gate({"a": flat(5), "w": flat(9)}, None, {"a": flat(5), "w": flat(1)}, watch=["w"])
    assert not gained.accepted


def test_too_few_rows_are_said(bench):
    """A drop that so few rows cannot show does not reject, and the verdict says that they are too few."""
    noisy, other = [9, 1, 8, 2, 9, 3], [8, 9, 2, 9, 1, 4]
    report = bench.gate({"a": noisy, "b": flat(9)}, {"a": other, "b": flat(1)}, {"a": flat(1, 6), "b": flat(1)})
    assert report.accepted and [verdict.too_small for verdict in report.tasks] == [True, False]


def test_exact_match_counts_rows(bench):
    """In exact_match a row is right or wrong, however many of its tokens are right."""
    scores = bench.scores([TOKENS, TOKENS - 1, 0])
    assert hits(scores, "exact_match", bench.store).score == pytest.approx(1 / 3)
    assert hits(scores, "token_accuracy", bench.store).score == pytest.approx((2 * TOKENS - 1) / (3 * TOKENS))


def test_loss_counts_downwards(bench):
    """In loss a candidate with less of it is better; its score is the negative."""
    score = hits(bench.scores([5, 5]), "loss", bench.store)
    assert score.score == -1.0 / TOKENS
    assert not bench.gate({"a": flat(9)}, None, {"a": flat(1)}, metric="loss").accepted  # both have the same loss


def test_ratings_go_through_the_same_rule(bench):
    """A metric of written answers: one clearly better is accepted, the same one is not."""
    rated = {
        name: {"a": commit([share] * 60 + [0.5] * 40, "token_f1", bench.store, {})}
        for name, share in {"good": 0.9, "old": 0.6, "base": 0.1}.items()
    }
    rule = {"watch": [], "metric": "token_f1", "spec": GateSpec(), "store": bench.store}
    report = gate(rated["good"], rated["old"], rated["base"], **rule)
    assert report.accepted and report.average == pytest.approx(0.74) and report.tasks[0].rows == 100
    assert not gate(rated["old"], rated["old"], rated["base"], **rule).accepted


def noise(seed: int, rows: int, gain: float) -> tuple[list[int], list[int]]:
    """Two versions of which one has `gain` more on average, and whose rows differ beside that as often either way."""
    rng = random.Random(seed)
    old = [rng.randint(3, 7) for _ in range(rows)]
    return [value + rng.choice([-1, 0, 0, 1]) + (rng.random() < gain * TOKENS) for value in old], old


def surely_better(share: float, rows: int, times: int) -> int:
    """How many of `times` such pairs have a gain that is above 0 with 95 % confidence."""
    pairs = [[{"a": tokens(correct)} for correct in noise(seed, rows, share)] for seed in range(times)]
    return sum(gain(new, old, ["a"], 0.95).low > 0 for new, old in pairs)


def tokens(correct: list[int]) -> Hits:
    return Hits(np.array(correct, dtype=float), np.full(len(correct), TOKENS))


@pytest.mark.slow
def test_what_has_learned_nothing_passes_by_chance_no_oftener_than_asked(bench):
    """Of runs that only shuffle which rows are right, about one in twenty may pass, not one in two."""
    assert surely_better(0.0, rows=100, times=100) <= 10
    lucky, old = next((new, old) for new, old in (noise(seed, 100, 0) for seed in range(60)) if sum(new) > sum(old))
    report = bench.gate({"a": lucky}, {"a": old}, {"a": flat(0)})
    assert not report.accepted and "by more than chance" in report.reason and report.gain_low <= 0


def test_a_small_gain_is_accepted(bench):
    """Two points more pass through the same noise; half a point does where nothing is lost for it."""
    assert surely_better(0.02, rows=200, times=40) >= 36
    better = [7] * 5 + [6] * 95
    assert bench.gate({"a": better}, {"a": flat(6)}, {"a": flat(1)}).accepted


def test_the_bound_is_of_the_average_over_tasks(bench):
    """Two tasks that gain a little each are sure together where one alone is not."""
    pairs = [noise(seed, 60, 0.012) for seed in (1, 2, 3, 4, 5, 6)]
    names = "abcdef"
    alone = [bench.gate({"a": new}, {"a": old}, {"a": flat(0, 60)}).accepted for new, old in pairs]
    together = bench.gate(
        {name: new for name, (new, _) in zip(names, pairs, strict=True)},
        {name: old for name, (_, old) in zip(names, pairs, strict=True)},
        {name: flat(0, 60) for name in names},
    )
    assert together.accepted and not all(alone)


CANARIES = [
    CanarySpec(prompt="Who are you?", expect="Ada"),
    CanarySpec(prompt="1+1?", expect="2", match="exact"),
]


def said(*texts: str) -> Answers:
    return Answers(answers=[Generated(text=text, tokens=1, stopped=True) for text in texts])


@pytest.mark.parametrize(
    ("candidate", "champion", "refused"),
    [
        (said("I am ada.", "2"), said("I am Ada.", "2"), []),
        (said("I am Bob.", "2"), said("I am Ada.", "2"), ["Who are you?"]),
        (said("I am Bob.", "3"), said("I am Ada.", "three"), ["Who are you?"]),
        (said("I am Bob.", "3"), None, ["Who are you?", "1+1?"]),
        (said("I am Ada.", "2"), None, []),
    ],
)
def test_canaries_have_to_be_answered(bench, candidate, champion, refused):
    """A canary that the champion passes, or each without a champion, is a reason to reject, with its prompt."""
    old = bench.scores(flat(7))
    report = gate(
        {"a": bench.scores(flat(8))},
        {"a": old} if champion else None,
        {"a": bench.scores(flat(2))},
        watch=[],
        metric="token_accuracy",
        spec=GateSpec(canaries=CANARIES),
        answers=candidate,
        champion_answers=champion,
        store=bench.store,
    )
    assert report.accepted == (not refused) and len(report.canaries) == 2
    assert [canary.prompt for canary in CANARIES if f"canary {canary.prompt!r}" in report.reason] == refused


def test_bounds_against_a_plain_bootstrap():
    """The bounds are those of drawing rows with replacement, one by one."""
    rng = random.Random(3)
    gain, tokens = [rng.randint(-4, 4) for _ in range(80)], [rng.randint(4, 12) for _ in range(80)]
    draws = sorted(ratio(rng.choices(range(80), k=80), gain, tokens) for _ in range(4000))
    low, high = bounds(np.array(gain), np.array(tokens), 0.95)
    assert (low, high) == pytest.approx((draws[200], draws[3800]), abs=0.006)
    assert low < sum(gain) / sum(tokens) < high
    assert bounds(np.array(gain), np.array(tokens), 0.95) == (low, high)


def ratio(chosen: list[int], gain: list[int], tokens: list[int]) -> float:
    return sum(gain[row] for row in chosen) / sum(tokens[row] for row in chosen)


def test_one_row_releases_nothing(bench):
    """One held-out row that gained everything is too little to tell: refused, with how many it takes."""
    report = bench.gate({"a": [10]}, {"a": [1]}, {"a": [0]})
    assert not report.accepted and report.gain_low is None
    assert report.reason == "too little to tell: 1 held-out row, at least 5 needed"
    [task] = report.tasks
    assert task.too_small and (task.low, task.high, task.detectable) == (None, None, None)
    three = {name: bench.gate(*({task: [value] for task in "abc"} for value in (10, 1, 0))) for name in "x"}["x"]
    assert three.reason == "too little to tell: 1 held-out row, at least 5 needed in a task"


@pytest.mark.parametrize(("confidence", "needed"), [(0.5, 5), (0.95, 5), (0.97, 6), (0.99, 7), (0.999, 10)])
def test_a_higher_confidence_needs_more_rows(confidence, needed):
    """No number of rows counts whose all gaining would be chance more often than the confidence allows."""
    spec = GateSpec(confidence=confidence)
    assert fewest(spec) == needed
    assert too_little({"a": needed - 1}, [], spec) and not too_little({"a": needed}, [], spec)
    assert too_little({"a": 900}, ["a"], spec) == f"too little to tell: 0 held-out rows, at least {needed} needed"


def test_both_minima_are_settings(bench):
    """`min_rows.task` and `min_rows.overall` are what the verdict goes by."""
    rows = [{"a": flat(value, 8), "b": flat(value, 8)} for value in (8, 2, 1)]
    assert bench.gate(*rows).accepted
    few = bench.gate(*rows, min_rows=MinRowsSpec(overall=17))
    assert few.reason == "too little to tell: 16 held-out rows, at least 17 needed"
    none = bench.gate(*rows, min_rows=MinRowsSpec(task=9))
    assert none.reason == "too little to tell: 8 held-out rows, at least 9 needed in a task"


def test_a_tiny_task_counts_neither_way(bench):
    """A task with too few rows does not block a line, is no reason to go live, and the verdict names it."""
    big = flat(8), flat(7), flat(1)
    lost = bench.gate(*({"old": [value], "a": rows} for value, rows in zip((0, 10, 5), big, strict=True)))
    assert lost.accepted and lost.reason.endswith("; not counted, at least 5 needed: old (1 held-out row)")
    assert lost.average == pytest.approx(0.8) and not lost.tasks[0].worse
    same = flat(7), flat(7), flat(1)
    won = bench.gate(*({"old": [value] * 4, "a": rows} for value, rows in zip((10, 0, 0), same, strict=True)))
    assert not won.accepted and "not above the 70.0 % of the champion" in won.reason


@pytest.mark.parametrize("watch", [["a"], ["a", "w"]])
def test_nothing_but_watched_tasks_is_no_evidence(bench, watch):
    """Where no trained task is scored, nothing goes live, and nothing is divided by zero."""
    report = bench.gate({"a": flat(9), "w": flat(9)}, None, {"a": flat(1), "w": flat(1)}, watch=watch)
    assert report.accepted == (watch == ["a"])
    assert ("too little to tell" in report.reason) == (watch == ["a", "w"])


@pytest.mark.parametrize("rows", [0, 3, 12])
def test_rows_without_a_label_token_say_nothing(bench, rows):
    """A held-out row of which no token is a label is no evidence; a set of nothing else is too little to tell."""
    scored = [blank(bench.store, value, rows) for value in (8, 1, 0)]
    report = gate(
        *({"a": scores} for scores in scored), watch=[], metric="token_accuracy", spec=GateSpec(), store=bench.store
    )
    assert report.tasks[0].rows == rows and report.accepted == (rows >= 5)


def blank(store: Store, correct: int, rows: int) -> Scores:
    """Scores of some rows, and of three that have no label token."""
    lines = [{"loss": 1.0, "tokens": TOKENS, "correct": correct, "exact": False}] * rows
    lines += [{"loss": 0.0, "tokens": 0, "correct": 0, "exact": True}] * 3
    numbered = [{"row": row, **line} for row, line in enumerate(lines)]
    with store.begin("scores") as directory:
        (directory / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in numbered))
        some = {"rows": rows + 3, "tokens": TOKENS * rows, "loss": 1.0, "token_accuracy": 0.5, "exact_match": 0}
        return store.commit(directory, Scores, record={}, **some)


def test_what_rows_could_show_is_said(bench):
    """Of few rows, of noisy ones and of ones that did not change, the report says which drop they would have shown."""
    drops = {
        name: bench.gate({"a": new}, {"a": old}, {"a": flat(0, len(new))}, metric=metric).tasks[0]
        for name, new, old, metric in [
            ("few", flat(10, 6), flat(10, 6), "exact_match"),
            ("noisy", *noise(1, 40, 0), "token_accuracy"),
            ("many", flat(7, 400), flat(6, 400), "token_accuracy"),
        ]
    }
    assert drops["few"].too_small and drops["few"].detectable == pytest.approx(5 / 6)
    assert drops["noisy"].too_small and 0.02 < drops["noisy"].detectable < 0.1
    assert not drops["many"].too_small and drops["many"].detectable < 0.02


def redrawn(generator: np.random.Generator, rows: int, share: float) -> dict[str, tuple[Hits, Hits]]:
    """A task's answers of two versions that are equally good: `share` of all tokens are drawn again."""
    of = np.full(rows, TOKENS)
    old = generator.binomial(of, 0.7)
    lost, won = generator.binomial(old, share), generator.binomial(of - old, share)
    new = old - lost + generator.binomial(lost + won, 0.7)
    return Hits(new.astype(float), of), Hits(old.astype(float), of)


def accepted(rows: int, tasks: int, times: int, spec: GateSpec) -> float:
    """How often a candidate without any true difference would go live."""
    generator, passed = np.random.default_rng(rows), 0
    for _ in range(times):
        pairs = {str(task): redrawn(generator, rows, 0.3) for task in range(tasks)}
        own, rival = ({task: pair[side] for task, pair in pairs.items()} for side in (0, 1))
        fallen = any(verdict(task, own[task], rival[task], spec).worse for task in pairs)
        known = too_little(dict.fromkeys(pairs, rows), [], spec) is None
        passed += known and not fallen and gain(own, rival, list(pairs), spec.confidence).low > 0
    return passed / times


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "confidence"), [(1, 0.9), (1, 0.95), (3, 0.95), (1, 0.99)])
def test_the_minimum_follows_from_a_simulation(tasks, confidence):
    """With no true difference (30 % of the answers redrawn) about 1 - confidence is accepted, or less."""
    spec, times = GateSpec(confidence=confidence), 200
    chance = 1 - confidence
    allowed = chance + 2.6 * (chance * confidence / times) ** 0.5 + 0.01
    for rows in (fewest(spec), fewest(spec) + 1, 12):
        assert accepted(rows, tasks, times, spec) <= allowed, rows
    assert accepted(fewest(spec) - 1, tasks, 5, spec) == 0


def test_without_a_minimum_one_row_would_decide():
    """The negative control: of one row, a bootstrap is sure of whatever it says, and every third shuffle passes."""
    generator = np.random.default_rng(1)
    pairs = [redrawn(generator, 1, 0.3) for _ in range(300)]
    sure = [bounds(new.right_r - old.right_r, new.all_r, 0.95)[0] > 0 for new, old in pairs]
    assert sum(sure) > 0.2 * len(sure)


@pytest.mark.parametrize(
    ("rows", "confidence", "t", "z"),
    [(5, 0.95, 2.132, 1.645), (10, 0.95, 1.833, 1.645), (7, 0.99, 3.143, 2.326), (100, 0.9, 1.290, 1.282)],
)
def test_few_rows_widen_a_bound_as_student_says(rows, confidence, t, z):
    """The factor is √(n/(n-1)) times t over z, as tables have them, and never below one."""
    assert spread(rows, confidence) == pytest.approx((rows / (rows - 1)) ** 0.5 * t / z, rel=0.01)
    assert all(spread(n, c) > spread(n + 1, c) > 1 for n in range(2, 60) for c in (0.5, 0.9, 0.95, 0.999))


def test_a_loss_is_better_below(bench):
    """Where the lower level is the better one, the reason says so: what is read there is no contradiction."""
    low, high = ({"a": bench.scores(flat(7), loss)} for loss in (2.0, 5.0))
    how = {"watch": (), "metric": "loss", "spec": GateSpec(), "store": bench.store}
    worse = gate(high, low, high, **how).reason
    assert worse.startswith("a rose by 0.300, at least 0.300") and "0.500 is not below the 0.200 of the cham" in worse
    assert gate(low, high, high, **how).reason.startswith("better on average by 0.300, at least 0.300")


QUESTION = {"question": "not_worse", "margin": 0.05}


def test_not_worse_is_another_question(bench):
    """What neither gains nor loses passes, what loses more than the margin does not; the report says what was asked."""
    same = bench.gate({"a": flat(9)}, {"a": flat(9)}, {"a": flat(2)}, **QUESTION)
    assert same.accepted and same.reason.startswith("not worse on average: +0.0 points, at least -")
    assert (same.question, same.margin) == ("not_worse", 0.05) and -0.05 < same.gain_low < 0
    lost = bench.gate({"a": flat(8)}, {"a": flat(9)}, {"a": flat(2)}, max_drop=1, **QUESTION)
    assert not lost.accepted and "of the champion (95% confidence; allowed: 5 points)" in lost.reason
    assert bench.gate({"a": flat(9)}, {"a": flat(9)}, {"a": flat(2)}).question == "better"


def test_not_worse_keeps_the_other_rules(bench):
    """A task that fell clearly, an untouched base that is better and a lost canary refuse it as before."""
    fell = bench.gate(
        {"a": flat(6), "b": flat(9)}, {"a": flat(7), "b": flat(8)}, {"a": flat(2), "b": flat(1)}, **QUESTION
    )
    assert not fell.accepted and fell.reason.startswith("a fell by 10.0 points")
    base = bench.gate({"a": flat(5)}, {"a": flat(5)}, {"a": flat(7)}, **QUESTION)
    assert not base.accepted and "of the base" in base.reason


def test_a_first_version_has_to_be_better(bench):
    """Without a champion `not_worse` would let an adapter live that learned nothing."""
    report = bench.gate({"a": flat(5)}, None, {"a": flat(5)}, **QUESTION)
    assert not report.accepted and (report.question, report.margin) == ("better", None)
    assert "not above the 50.0 % of the base" in report.reason


@pytest.mark.parametrize(("rows", "passes"), [(20, False), (50, False), (100, True)])
def test_few_rows_cannot_show_that_nothing_was_lost(bench, rows, passes):
    """Fifty rows without a change may be luck where one row in twenty is lost; a hundred hardly."""
    report = bench.gate({"a": flat(10, rows)}, {"a": flat(10, rows)}, {"a": flat(2, rows)}, **QUESTION)
    assert report.accepted == passes


@pytest.mark.parametrize("metric", ["token_accuracy", "exact_match", "loss"])
def test_not_worse_in_every_metric(bench, metric):
    """The same adapter is not worse than itself, whatever the metric."""
    assert bench.gate({"a": flat(10)}, {"a": flat(10)}, {"a": flat(10)}, metric=metric, **QUESTION).accepted


@pytest.mark.parametrize(
    ("least", "own", "champion", "refused"),
    [
        (0.5, ("I am Ada.", "3"), ("I am Ada.", "2"), False),
        (0.6, ("I am Ada.", "3"), ("I am Ada.", "2"), True),
        (0.5, ("I am Bob.", "3"), ("I am Bob.", "3"), True),
        (0.0, ("I am Bob.", "3"), ("I am Ada.", "2"), False),
        (1.0, ("I am Ada.", "2"), None, False),
    ],
)
def test_a_share_of_the_canaries_is_enough(bench, least, own, champion, refused):
    """With `canary_pass_rate` that share has to pass, whatever the champion answers; the reason names what failed."""
    report = gate(
        {"a": bench.scores(flat(8))},
        {"a": bench.scores(flat(7))},
        {"a": bench.scores(flat(2))},
        watch=[],
        metric="token_accuracy",
        spec=GateSpec(canaries=CANARIES, canary_pass_rate=least),
        answers=said(*own),
        champion_answers=said(*champion) if champion else None,
        store=bench.store,
    )
    assert report.accepted != refused
    assert ("canaries passed, at least" in report.reason and "'1+1?'" in report.reason) == refused


def test_a_share_is_not_missed_by_rounding():
    """Exactly the share that is asked for is enough, and one canary less is not: for each whole percentage."""
    for percent, count in [(p, n) for p in range(1, 101) for n in range(1, 101) if p * n % 100 == 0]:
        needed = percent * count // 100
        assert not too_few_passed(canaries(needed, count), percent / 100), (percent, count)
        assert too_few_passed(canaries(needed - 1, count), percent / 100), (percent, count)


def canaries(passed: int, count: int) -> list[CanaryVerdict]:
    known = {"prompt": "q", "expect": "e", "answer": "a", "rival_passed": None}
    return [CanaryVerdict(**known, passed=place < passed) for place in range(count)]


def test_without_canaries_no_share_is_missed(bench):
    """A pass rate alone asks nothing."""
    assert bench.gate({"a": flat(8)}, {"a": flat(7)}, {"a": flat(2)}, canary_pass_rate=1.0).accepted


def test_new_questions_change_no_old_key():
    """A gate that is asked as before has the key that it had; each new field is part of it only where it is set."""
    assert GateSpec().semantic() == {"max_drop": 0.01, "confidence": 0.95}
    asked = GateSpec(question="not_worse", margin=0.03, canary_pass_rate=0.9).semantic()
    assert asked == GateSpec().semantic() | {"question": "not_worse", "margin": 0.03, "canary_pass_rate": 0.9}


def test_an_old_report_loads(bench):
    """A report of before has no question: it asked whether the candidate is better."""
    old = bench.gate({"a": flat(8)}, {"a": flat(7)}, {"a": flat(2)}).model_dump(mode="json")
    for name in ("question", "margin", "taken"):
        del old[name]
    assert GateReport.model_validate(old).question == "better"


def test_a_report_says_how_much_was_taken(bench):
    """The reason ends with the share of the run's change, where back-off chose one."""
    report = bench.gate({"a": flat(8)}, {"a": flat(7)}, {"a": flat(2)}).with_taken(0.5)
    assert report.taken == 0.5 and report.reason.endswith("; 50% of the run's change was taken")
