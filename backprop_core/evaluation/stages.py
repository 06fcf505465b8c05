"""Evaluation stages: scores, generated answers and their ratings, comparisons of scores, the gate."""

from backprop_core.evaluation import bits_per_byte, metrics, setting_choice
from backprop_core.evaluation import gate as gating
from backprop_core.evaluation import judge as judging
from backprop_core.evaluation import scored_by_both as comparable
from backprop_core.schema.field_types import Precision
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    AdapterRef,
    Answers,
    BackedOff,
    BaseRef,
    ByteScores,
    Contrast,
    Generated,
    Generations,
    Harnessed,
    OwnTasks,
    Perplexities,
    Ratings,
    RowsRef,
    Scores,
    Searched,
)
from backprop_core.schema.specs import GateSpec, GenerationSpec, HarnessSpec, JudgeSpec, Limit, MergeSpec
from backprop_core.stages import WorkerPlace, Workplace, stage


@stage(version=2, runs_in="worker")
def evaluate(
    base: BaseRef,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    max_length: int | Limit,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> Scores:
    """A model and held-out rows → teacher-forced scores, one cell of the forgetting matrix."""
    from backprop_core.evaluation import scoring

    model = at.model(base, adapter, precision, device)
    return scoring.evaluate(model, adapter, heldout, max_length=max_length, store=at.store, on_progress=at.progress)


@stage(version=1, runs_in="worker")
def perplexity(
    base: BaseRef, rows: RowsRef, max_length: int | Limit, precision: Precision, device: str, *, at: WorkerPlace
) -> Perplexities:
    """The base and rows → the perplexity of each row."""
    from backprop_core.evaluation import perplexity as scored

    model = at.base(base, precision, device)
    return scored.perplexities(model, rows, max_length=max_length, store=at.store, on_progress=at.progress)


@stage(version=2, runs_in="worker")
def search(
    base: BaseRef,
    merged: AdapterRef,
    tuned: AdapterRef,
    count: int,
    spec: MergeSpec,
    heldout: list[RowsRef],
    max_length: int | Limit,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> Searched:
    """Merged adapter, tuned adapter and held-out rows → the λ with the lowest loss."""
    from backprop_core.evaluation import lambda_search

    return lambda_search.search(
        at.base(base, precision, device),
        merged,
        tuned,
        count=count,
        spec=spec,
        heldout=heldout,
        max_length=max_length,
        store=at.store,
        on_progress=at.progress,
    )


@stage(version=1, runs_in="worker")
def back_off(
    base: BaseRef,
    champion: AdapterRef,
    candidate: AdapterRef,
    heldout: list[RowsRef],
    metric: str,
    max_length: int | Limit,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> BackedOff:
    """Champion, candidate and held-out rows → the best point between them."""
    from backprop_core.evaluation import back_off as backing

    return backing.back_off(
        at.base(base, precision, device),
        champion,
        candidate,
        heldout=heldout,
        metric=metric,
        max_length=max_length,
        store=at.store,
        on_progress=at.progress,
    )


@stage(version=2, runs_in="worker")
def harness(
    base: BaseRef,
    adapter: AdapterRef | None,
    spec: HarnessSpec,
    own: OwnTasks | None,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> Harnessed:
    """A model and lm-evaluation-harness tasks → scores."""
    from backprop_core.evaluation import lm_eval

    return lm_eval.harness(at.model(base, adapter, precision, device), adapter, spec=spec, own=own, store=at.store)


@stage(version=2, runs_in="worker")
def generate(
    base: BaseRef,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    spec: GenerationSpec,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> Generations:
    """A model and held-out rows → generated answers."""
    from backprop_core.evaluation import generation

    model = at.model(base, adapter, precision, device)
    return generation.generate(model, adapter, heldout, spec=spec, store=at.store, on_progress=at.progress)


@stage(version=2, runs_in="worker")
def answer(
    base: BaseRef,
    adapter: AdapterRef | None,
    conversations: list[list[dict[str, str]]],
    spec: GenerationSpec,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> Answers:
    """A model and conversations → generated answers."""
    from backprop_core.evaluation import generation

    model = at.model(base, adapter, precision, device)
    made = generation.answer(model, adapter, conversations, spec=spec, store=at.store, on_progress=at.progress)
    return Answers(answers=made)


@stage(version=1, runs_in="worker")
def reply(
    base: BaseRef,
    adapter: AdapterRef | None,
    messages: list[dict[str, str]],
    spec: GenerationSpec,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> Generated:
    """A model and one conversation → its answer, sent as text while it is written."""
    from backprop_core.evaluation import streaming

    return streaming.reply(
        at.model(base, adapter, precision, device),
        adapter,
        messages,
        spec=spec,
        store=at.store,
        on_text=lambda text: at.emit({"text": text}),
        should_stop=at.should_stop,
    )


@stage(version=1, runs_in="parent")
def rate(generations: Generations, metric: str, pattern: str | None, *, at: Workplace) -> Ratings:
    """Answers → ratings by a metric."""
    return metrics.rate(generations, metric=metric, pattern=pattern, store=at.store)


@stage(version=1, runs_in="parent")
def judge(generations: Generations, spec: JudgeSpec, *, at: Workplace) -> Ratings:
    """Answers → ratings by a judge model."""
    return judging.judge(generations, spec=spec, store=at.store, on_progress=at.progress)


@stage(version=1, runs_in="parent")
def per_byte(scores: Scores, other: Scores, rows: RowsRef, *, at: Workplace) -> ByteScores:
    """Scores, those of a model with another tokenizer, and their rows → bits per byte where both have a score."""
    return bits_per_byte.per_byte(scores, other, rows, store=at.store)


@stage(version=1, runs_in="parent")
def scored_by_both(scores: Scores, other: Scores, *, at: Workplace) -> Scores:
    """Scores, and those of a model with another tokenizer → the scores of the rows that both have."""
    return comparable.scored_by_both(scores, other, store=at.store)


@stage(version=1, runs_in="parent")
def contrast(scores: list[Scores | Ratings], metric: str, confidence: float, *, at: Workplace) -> Contrast:
    """Scores of several adapters on the same rows → each one compared with the best."""
    return setting_choice.contrast(scores, metric=metric, confidence=confidence, store=at.store)


@stage(version=3, runs_in="parent")
def gate(
    candidate: dict[str, Scores | Ratings | ByteScores],
    champion: dict[str, Scores | Ratings | ByteScores] | None,
    base: dict[str, Scores | Ratings | ByteScores],
    watch: list[str],
    metric: str,
    spec: GateSpec,
    answers: Answers | None,
    champion_answers: Answers | None,
    *,
    at: Workplace,
) -> GateReport:
    """Scores of the candidate, the champion and the base → whether the candidate may go live."""
    return gating.gate(
        candidate,
        champion,
        base,
        watch=watch,
        metric=metric,
        spec=spec,
        answers=answers,
        champion_answers=champion_answers,
        store=at.store,
    )
