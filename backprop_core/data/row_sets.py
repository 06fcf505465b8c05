"""Makes sets of rows from others: pooled, unseen, the first, one of two parts, mixed with replayed ones."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.learned_rows import in_any_form
from backprop_core.data.preference_rows import is_preference
from backprop_core.data.question_groups import kin_of, related
from backprop_core.data.row_files import commit, index, index_all
from backprop_core.data.row_files import curriculum as order_in
from backprop_core.data.row_index import SIZE, Keys, Mask, Positions, RowIndex, joined, salted, unique
from backprop_core.errors import NoRows
from backprop_core.schema.refs import RowsRef
from backprop_core.store.artifacts import Store

SEARCH_SHARE = 4  # one in four held-out rows only chooses: λ, the best step
ORDER = "order:"  # salt of training order
HINT = "provide more rows, or a separate file of held-out rows (--heldout FILE)"


def pool(heldouts: list[RowsRef], *, heldout_max: int, store: Store) -> RowsRef:
    """Merge held-out sets: distinct rows, the first `heldout_max` by hash. A single set is returned unchanged.

    Raises NoRows if there is none.
    """
    sets = {ref.digest: ref for ref in heldouts if ref.rows}
    if not sets:
        raise NoRows("this task has no held-out rows to score", hint=HINT)
    if len(sets) == 1:
        return next(iter(sets.values()))
    merged = unique([index(ref, store) for ref in sets.values()])
    return commit(merged.take(slice(heldout_max)), store, {"stage": "pool", "heldout": sorted(sets)})


def apart(heldout: RowsRef, *, to_choose_by: bool, store: Store) -> RowsRef:
    """One of two parts of held-out rows: those that only choose (λ, the best step), or those that score.

    The hash of the row decides, or of its group, so neither changes sides; groups that are one, because preferences in
    them have one question, are on one side. Raises NoRows if the part is empty.
    """
    every = with_kin(index(heldout, store))
    rows = every.take(chooses(every) == to_choose_by)
    if not len(rows):
        groups = len(np.unique(every.groups[every.groups != 0]))
        few = f"{heldout.rows} held-out rows{f' (groups: {groups})' if groups else ''} are too few"
        raise NoRows(f"{few} to choose by some and score by the others", hint=HINT)
    return commit(rows, store, {"stage": "apart", "heldout": heldout.digest})


def with_kin(rows: RowIndex) -> RowIndex:
    """The rows with what their groups are one of."""
    return related(rows, kin_of([rows])) if rows.entries["group"].any() else rows


def chooses(rows: RowIndex) -> Mask:
    """Which held-out rows only choose, and therefore do not score. The rows of a group are on one side."""
    entries, groups = rows.entries.copy(), rows.groups
    grouped = groups != 0
    entries["identity"][grouped] = 0
    entries["identity"][grouped, :8] = groups[grouped].view(np.uint8).reshape(-1, 8)
    lead = np.frombuffer(salted(RowIndex(rows.paths, entries), "search:"), np.uint8)[::SIZE]
    return np.asarray(lead < 256 // SEARCH_SHARE, np.bool_)


def unseen(
    rows: RowsRef, *, learned: Sequence[RowsRef], besides: Sequence[RowsRef] = (), whole_groups: bool, store: Store
) -> RowsRef:
    """The rows that are in no form in one of the `learned` sets, and not in `besides`, in order.

    With `whole_groups`, rows of a group of which something was learned are left out too.
    """
    every = index(rows, store)
    out = in_any_form(every, index_all(learned, store), whole_groups=whole_groups)
    new = every.take(~out & ~every.among(index_all(besides, store).keys))
    return commit(new, store, {"stage": "unseen", "rows": rows.digest})


def first(rows: RowsRef, *, most: int, whole_groups: bool, store: Store) -> RowsRef:
    """The first `most` rows: a random sample, as curated rows are sorted by hash.

    With `whole_groups`, all rows of a group or none: groups that do not fit any more are passed over, and if none fits,
    the smallest one is taken alone.
    """
    every = index(rows, store)
    chosen = every.take(fitting(every.groups, most) if whole_groups else slice(most))
    return commit(chosen, store, {"stage": "first", "rows": rows.digest})


def answers(rows: RowsRef, *, store: Store) -> RowsRef:
    """The rows that have an answer to learn, in order: all but preferences."""
    every = index(rows, store)
    kept = [not is_preference(json.loads(line)) for line in every.lines()]
    return commit(every.take(np.array(kept, np.bool_)), store, {"stage": "answers", "rows": rows.digest})


def fitting(groups: NDArray[np.uint64], most: int) -> Positions:
    """Positions of at most `most` rows in order, all of a group or none; the smallest group if no group fits."""
    _, unit, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    unit = np.where(groups != 0, unit, len(sizes) + np.arange(len(groups)))  # a row without a group is one by itself
    sizes = np.concatenate([sizes, np.ones(len(groups), np.int64)])
    order = unit[np.sort(np.unique(unit, return_index=True)[1])]
    taken, left = list[int](), most
    for one in order.tolist():
        if sizes[one] <= left:
            taken.append(one)
            left -= int(sizes[one])
    return np.flatnonzero(np.isin(unit, taken or [order[np.argmin(sizes[order])]]))


def replay(
    rows: RowsRef,
    earlier: Sequence[RowsRef],
    *,
    heldout: Sequence[RowsRef],
    share: float,
    passes: int,
    seed: int,
    store: Store,
) -> RowsRef:
    """Mix new rows with replayed ones: each epoch adds `share` of each earlier dataset's rows, at least one.

    Successive epochs and runs step through an earlier dataset in an order drawn by `seed`, so no row repeats before all
    others were used. `earlier` is sorted from oldest to newest. Rows in `heldout` are never replayed. If the new rows
    have a curriculum, the replayed ones are spread evenly between them.
    """
    held = index_all(heldout, store)
    draws: list[list[RowIndex]] = [[] for _ in range(passes)]
    for runs_since, ref in enumerate(reversed(earlier)):
        old = index(ref, store)
        order = without(old, held).by_hash(f"{seed}:")
        count = math.ceil(share * ref.rows) if len(order) else 0
        for number, draw in enumerate(draws, runs_since * passes):
            draw.append(part_of(order, number, count))
    return mixed(rows, draws, store, {"stage": "replay", "earlier": [ref.digest for ref in earlier]})


def replay_by_task(
    rows: RowsRef,
    earlier: Sequence[Sequence[RowsRef]],
    *,
    heldout: Sequence[RowsRef],
    share: float,
    least: int,
    passes: int,
    seed: int,
    general: RowsRef | None = None,
    of_general: int = 0,
    store: Store,
) -> RowsRef:
    """Mix new rows with replayed ones: each epoch adds `least` rows of each earlier task, or `share` of them if more.

    `earlier` has the datasets of each task. However many they are, each of their rows is as likely to be drawn: by
    `seed` and the number of all datasets, so each run draws anew. Within a run no row repeats before all others of its
    task were used. Of `general`, each epoch adds `of_general` rows. Held-out rows and a curriculum are treated as by
    `replay`.
    """
    held, salt = index_all(heldout, store), f"{seed}:{sum(map(len, earlier))}:"
    draws: list[list[RowIndex]] = [[] for _ in range(passes)]
    wanted = [(datasets, least, share) for datasets in earlier] + ([([general], of_general, 0.0)] if general else [])
    for datasets, fewest, part in wanted:
        old = unique([index(ref, store) for ref in datasets])
        order = without(old, held).by_hash(salt)
        count = min(max(fewest, math.ceil(part * len(order))), len(order))
        for number, draw in enumerate(draws):
            draw.append(part_of(order, number, count))
    refs = [[ref.digest for ref in datasets] for datasets, *_ in wanted]
    return mixed(rows, draws, store, {"stage": "replay_by_task", "earlier": refs})


def without(rows: RowIndex, held: RowIndex) -> RowIndex:
    """The rows that are not held out, in any form."""
    return rows.take(~in_any_form(rows, held))


def part_of(order: RowIndex, number: int, count: int) -> RowIndex:
    """The `number`-th part of `count` rows; after the last row the first follows."""
    return order.take(np.arange(number * count, (number + 1) * count) % max(len(order), 1))


def mixed(rows: RowsRef, draws: Sequence[Sequence[RowIndex]], store: Store, record: dict[str, Any]) -> RowsRef:
    """Commit new rows together with the old rows of each epoch."""
    new = index(rows, store)
    every = unique([new, *(part for draw in draws for part in draw)]).by_hash(ORDER)
    curriculum = order_in(store.local(rows))
    if curriculum == "rows":
        every = every.take(spread(every, new))
    by_pass = [only_in(every, joined(draw).keys, new.keys) for draw in draws]
    return commit(every, store, {**record, "rows": rows.digest}, passes=by_pass, curriculum=curriculum)


def spread(mixed: RowIndex, new: RowIndex) -> Positions:
    """Positions that put the new rows in their order, and the others evenly between them."""
    place, by_key = np.empty(len(mixed)), np.argsort(new.keys)
    is_new = mixed.among(new.keys)
    place[is_new] = (by_key[np.searchsorted(new.keys[by_key], mixed.keys[is_new])] + 0.5) / max(len(new), 1)
    others = len(mixed) - int(is_new.sum())
    place[~is_new] = (np.arange(others) + 0.5) / max(others, 1)
    return np.argsort(place, kind="stable")


def only_in(mixed: RowIndex, draw: Keys, new: Keys) -> list[int]:
    """Positions of the rows of a draw that are not new."""
    found: list[int] = np.flatnonzero(mixed.among(draw) & ~mixed.among(new)).tolist()
    return found
