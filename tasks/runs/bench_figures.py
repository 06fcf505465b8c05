"""The comparison that `bench` makes of its results: one row a setting, and what to set."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev

from backprop_core.evaluation.paired_differences import paired
from backprop_core.schema.refs import BenchReport, BenchResult, BenchRow, BenchSetting, PairedDifference
from backprop_core.schema.score_text import WITHOUT_LIMIT
from backprop_core.schema.specs import MergeSpec, merge_of

Cells = dict[tuple[int | None, int], BenchResult]
NOTHING = "Nothing beats the present settings by more than noise."
ONE_CELL = "One cell says nothing about noise: compare over more orders or seeds."


def average(result: BenchResult) -> float:
    """Mean over tasks of the score after the last run."""
    return fmean(dict(zip(result.tasks, result.last, strict=True)).values())


def transfer(result: BenchResult) -> float | None:
    """Mean over tasks of a[T,t] - a[i,t], with i < T the last run of t; None if there is none."""
    runs = enumerate(zip(result.tasks, result.last, result.then, strict=True), 1)
    changes = [last - then for number, (task, last, then) in runs if task not in result.tasks[number:]]
    earlier = changes[:-1]
    return fmean(earlier) if earlier and result.order is not None else None


def report(
    metric: str, orders: list[list[str]], present: BenchSetting, base: Mapping[str, float], results: list[BenchResult]
) -> BenchReport:
    """The rows of the table: present settings first, then the others by average, all at once and the base."""
    by_setting: dict[BenchSetting, Cells] = {}
    for result in results:
        if result.order is not None:
            by_setting.setdefault(result.setting, {})[result.order, result.seed] = result
    here = by_setting.get(present, {})
    among = max(len(by_setting) - 1, 1)
    rows = [row(name(setting), setting, cells, here, among) for setting, cells in by_setting.items()]
    rows.sort(key=lambda one: (one.setting != present, -one.average))
    together: Cells = {(None, one.seed): one for one in results if one.order is None}
    bound = [row("all at once", present, together, {})] if together else []
    made = BenchReport(
        metric=metric, orders=orders, present=present, rows=[*rows, *bound, untouched(base)], advice="", results=results
    )
    return made.model_copy(update={"advice": advice(rows, present, metric)})


def row(called: str, setting: BenchSetting, cells: Cells, present: Cells, among: int = 1) -> BenchRow:
    """One setting of `among` others over its cells, compared with the present one in the cells that both have."""
    results = list(cells.values())
    averages, both = [average(one) for one in results], [cell for cell in cells if cell in present]
    changes = [change for one in results if (change := transfer(one)) is not None]
    rival = present if present is not cells else {}
    return BenchRow(
        name=called,
        setting=setting,
        average=fmean(averages),
        std=stdev(averages) if len(averages) > 1 else None,
        backward_transfer=fmean(changes) if changes else None,
        worst=fmean(min(one.last) for one in results),
        over_present=paired([average(cells[c]) for c in both], [average(rival[c]) for c in both], among=among)
        if rival and both
        else None,
        seconds=fmean(one.seconds for one in results),
        cells=len(results),
    )


def untouched(base: Mapping[str, float]) -> BenchRow:
    """The base without an adapter."""
    return BenchRow(
        name="base",
        setting=None,
        average=fmean(base.values()),
        std=None,
        backward_transfer=None,
        worst=min(base.values()),
        over_present=None,
        seconds=None,
        cells=1,
    )


def name(setting: BenchSetting) -> str:
    """A setting in a few words."""
    return f"{setting.strategy}, {replay_of(setting)}, rate {setting.rate:g}"


def replay_of(setting: BenchSetting) -> str:
    if not setting.replay:
        return "no replay"
    return f"replay {100 * setting.replay:g}%" if setting.replay < 1 else f"replay {setting.replay:.0f} rows"


def advice(rows: Sequence[BenchRow], present: BenchSetting, metric: str) -> str:
    """What to set, with the gain and the cost; the best of those that gain more than noise."""
    if all(one.cells < 2 for one in rows):
        return ONE_CELL
    gains = [one for one in rows if one.over_present and one.over_present.is_gain]
    if not gains:
        return NOTHING
    best = max(gains, key=lambda one: one.average)
    assert best.setting and best.over_present
    changes, over = " and ".join(settings(best.setting, present)), best.over_present
    return f"Set {changes}: {points(over, metric)}, {cost(best, rows[0])}."


def points(over: PairedDifference, metric: str) -> str:
    """A difference with its interval; a loss has no percent."""
    times, digits, unit = (1, 3, "") if metric in WITHOUT_LIMIT else (100, 1, " points")
    interval = f" ({times * over.low:.{digits}f} to {times * over.high:.{digits}f})" if over.is_known else ""
    return f"{times * over.mean:+.{digits}f}{unit}{interval}"


def settings(wanted: BenchSetting, present: BenchSetting) -> Iterator[str]:
    """The fields that differ, as `--set` takes them.

    A spec that names a field of merge gets no default of a new line, so then merge and replay are named in full.
    """
    merge = list(merge_fields(merge_of(wanted.strategy), merge_of(present.strategy)))
    yield from merge
    if wanted.replay != present.replay or (merge and wanted.replay):
        yield from replay_fields(wanted.replay, present.replay)
    if wanted.rate != present.rate:
        yield f"training.learning_rate={wanted.rate:g}"


def merge_fields(new: MergeSpec, old: MergeSpec) -> Iterator[str]:
    """The fields of a merge that differ from another one, or from the defaults; none if both are the same."""
    if new == old:
        return
    if {new.strategy, old.strategy} != {MergeSpec().strategy}:
        yield f"merge.strategy={new.strategy}"
    if new.merge_a or old.merge_a:
        yield f"merge.merge_a={str(new.merge_a).lower()}"
    if new.weight or old.weight:
        yield f"merge.lambda={new.weight or 'null'}"


def replay_fields(wanted: float, present: float) -> Iterator[str]:
    """The fields that replay is set by: rows of a task, or a share."""
    own = "training.replay" if 0 < wanted < 1 or (not wanted and present < 1) else "training.replay_rows"
    yield f"{own}={wanted:g}"
    if wanted and present and (wanted < 1) != (present < 1):
        yield "training.replay_rows=0" if wanted < 1 else "training.replay=0"


def cost(best: BenchRow, present: BenchRow) -> str:
    """How much longer it trains."""
    more = (best.seconds or 0) / present.seconds - 1 if present.seconds else 0.0
    return f"{abs(more):.0%} {'more' if more > 0 else 'less'} training time" if abs(more) >= 0.05 else "at no cost"
