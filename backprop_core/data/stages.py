"""Data stages: from sources to rows that are trained, replayed or scored."""

from backprop_core.data import (
    curation,
    general_rows,
    perplexity_tails,
    preference_splits,
    row_sets,
    rows_on_base,
    splits,
)
from backprop_core.data.row_files import index
from backprop_core.data.token_lengths import Counter
from backprop_core.models import base as bases
from backprop_core.schema.refs import (
    Answers,
    BaseRef,
    Batch,
    ChatTemplate,
    Curated,
    Judgments,
    Perplexities,
    RowsRef,
    SourceRef,
    Split,
)
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.stages import Workplace, stage


@stage(version=6, runs_in="parent", planned=True)
def curate(
    source: SourceRef, spec: DatasetSpec, template: ChatTemplate, tokenizer: BaseRef | None, *, at: Workplace
) -> Curated:
    """A source → its distinct usable rows that the base's chat template accepts; `tokenizer` if tokens are counted."""
    counter = Counter(bases.locate(tokenizer.name, tokenizer.revision)[0]) if tokenizer else None
    return curation.curate(source, spec, template=template, counter=counter, store=at.store)


@stage(version=1, runs_in="parent", planned=True)
def sift(curated: Curated, scores: Perplexities, spec: CurationSpec, *, at: Workplace) -> Curated:
    """Curated rows and their perplexities → those that are left, in their order."""
    return perplexity_tails.sift(curated, scores, spec, store=at.store)


@stage(version=3, runs_in="parent", planned=True)
def split(
    batches: list[Batch],
    watched: list[Batch],
    held: dict[str, list[RowsRef]],
    learned: list[RowsRef],
    heldout_max: int,
    *,
    at: Workplace,
) -> Split:
    """All rows of a run → training rows and held-out rows."""
    return splits.split(batches, watched=watched, held=held, learned=learned, heldout_max=heldout_max, store=at.store)


@stage(version=2, runs_in="parent", planned=True)
def pool(heldouts: list[RowsRef], heldout_max: int, *, at: Workplace) -> RowsRef:
    """Several held-out sets → one."""
    return row_sets.pool(heldouts, heldout_max=heldout_max, store=at.store)


@stage(version=4, runs_in="parent", planned=True)
def apart(heldout: RowsRef, to_choose_by: bool, *, at: Workplace) -> RowsRef:
    """Held-out rows → those that only choose (λ, the best step), or those that score."""
    return row_sets.apart(heldout, to_choose_by=to_choose_by, store=at.store)


@stage(version=3, runs_in="parent", planned=True)
def unseen(
    rows: RowsRef,
    learned: list[RowsRef],
    besides: list[RowsRef] | None = None,
    whole_groups: bool = False,
    *,
    at: Workplace,
) -> RowsRef:
    """Rows → those that were learned in no form, and are not in other sets."""
    return row_sets.unseen(rows, learned=learned, besides=besides or [], whole_groups=whole_groups, store=at.store)


@stage(version=1, runs_in="parent", planned=True)
def first(rows: RowsRef, most: int, whole_groups: bool = False, *, at: Workplace) -> RowsRef:
    """Rows → the first `most` of them."""
    return row_sets.first(rows, most=most, whole_groups=whole_groups, store=at.store)


@stage(version=1, runs_in="parent", planned=True)
def judgments(rows: RowsRef, *, at: Workplace) -> Judgments:
    """Rows → how many of them judge answers."""
    return Judgments(**preference_splits.counted(index(rows, at.store)))


@stage(version=1, runs_in="parent", planned=True)
def answers(rows: RowsRef, *, at: Workplace) -> RowsRef:
    """Rows → those that have an answer to learn, without preferences."""
    return row_sets.answers(rows, store=at.store)


@stage(version=2, runs_in="parent", planned=True)
def carried_over(rows: RowsRef, template: ChatTemplate, without: list[RowsRef], *, at: Workplace) -> RowsRef:
    """Rows of a line → those that another base's chat template accepts, without those that score."""
    return rows_on_base.carried_over(rows, template, without=without, store=at.store)


@stage(version=4, runs_in="parent", planned=True)
def replay(
    rows: RowsRef,
    earlier: list[RowsRef],
    heldout: list[RowsRef],
    share: float,
    passes: int,
    seed: int,
    *,
    at: Workplace,
) -> RowsRef:
    """New rows and earlier datasets → new rows mixed with a share of earlier ones."""
    return row_sets.replay(rows, earlier, heldout=heldout, share=share, passes=passes, seed=seed, store=at.store)


@stage(version=2, runs_in="parent", planned=True)
def replay_by_task(
    rows: RowsRef,
    earlier: list[list[RowsRef]],
    heldout: list[RowsRef],
    share: float,
    least: int,
    passes: int,
    seed: int,
    general: RowsRef | None = None,
    of_general: int = 0,
    *,
    at: Workplace,
) -> RowsRef:
    """New rows and the datasets of each earlier task → new rows mixed with some of each task."""
    return row_sets.replay_by_task(
        rows,
        earlier,
        heldout=heldout,
        share=share,
        least=least,
        passes=passes,
        seed=seed,
        general=general,
        of_general=of_general,
        store=at.store,
    )


@stage(version=1, runs_in="parent", planned=True)
def own_answers(questions: list[str], answers: Answers, *, at: Workplace) -> RowsRef:
    """Questions and the base's answers to them → rows."""
    return general_rows.own_answers(questions, answers, store=at.store)
