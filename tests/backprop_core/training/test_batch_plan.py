"""The plan: which examples are in which step."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backprop_core.data.batching import OVERHEAD, by_budget
from backprop_core.schema.specs import TrainSpec
from backprop_core.training import batch_plan

LENGTHS = st.lists(st.integers(2, 500), min_size=1, max_size=300)


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_has_every_example_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    """Each example is in exactly one batch, and no two batches differ in size by more than one."""
    batches = batch_plan.epoch_batches(lengths, seed=seed, epoch=epoch, batch_size=batch_size)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size
    assert len(batches) == batch_plan.batches_per_epoch(len(lengths), batch_size)


@given(lengths=LENGTHS, first=st.integers(0, 60), steps=st.integers(1, 60), batch_size=st.integers(1, 40))
def test_a_later_start_sees_the_same_steps(lengths: list[int], first: int, steps: int, batch_size: int) -> None:
    """Going on at any step gives the rest of the whole plan: there is no other state."""
    spec = TrainSpec(steps=steps, batch_size=batch_size)
    halves = [range(0, len(lengths), 2), range(len(lengths) // 2, len(lengths))]
    for passes, ordered in itertools.product(([range(len(lengths))], halves), (False, True)):
        whole = list(batch_plan.batches_from(0, lengths, spec, passes, ordered=ordered))
        assert len(whole) == steps
        later = batch_plan.batches_from(min(first, steps), lengths, spec, passes, ordered=ordered)
        assert list(later) == whole[min(first, steps) :]


@given(lengths=LENGTHS, batch_size=st.integers(1, 40))
def test_a_curriculum_is_trained_in_its_order(lengths: list[int], batch_size: int) -> None:
    """Each epoch of a curriculum has its examples in the order given, whatever their lengths and the seed."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    spec = TrainSpec(epochs=2, batch_size=batch_size, seed=3)
    batches = batch_plan.batches_from(0, lengths, spec, [order], ordered=True)
    assert list(itertools.chain(*batches)) == 2 * order


def test_passes_are_taken_in_turn() -> None:
    """Each epoch has the examples of its pass, each once; after the last pass comes the first again."""
    lengths, passes = list(range(2, 32)), [range(0, 20), range(5, 25), range(10, 30)]
    batches = list(batch_plan.batches_from(0, lengths, TrainSpec(epochs=4, batch_size=5), passes))
    epochs = [sorted(itertools.chain(*batches[start : start + 4])) for start in range(0, 16, 4)]
    assert epochs == [list(examples) for examples in [*passes, passes[0]]]


def test_seed_and_epoch_shuffle() -> None:
    """Another seed or epoch is another order."""
    lengths = list(range(2, 102))
    orders = [
        batch_plan.epoch_batches(lengths, seed=seed, epoch=epoch, batch_size=8)
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len({str(order) for order in orders}) == 3


def test_the_plan_is_pinned() -> None:
    """The order is the same in any process and version; if this changes, raise the version of `train`."""
    batches = batch_plan.epoch_batches([5, 9, 3, 7, 4, 8, 6], seed=1, epoch=2, batch_size=3)
    assert batches == [[0, 6], [2, 4], [3, 5, 1]]


def test_grouping_by_length_saves_padding() -> None:
    """Windows sorted by length, and batches cut where that saves padding, pad far less than a random order does."""
    rng = random.Random(0)
    lengths = [int(rng.lognormvariate(4.5, 0.8)) + 2 for _ in range(512)]
    batches = batch_plan.epoch_batches(lengths, seed=0, epoch=0, batch_size=8)
    grouped = [group for batch in batches for group in by_budget(batch, lengths, 4096)]
    mixed = [list(range(start, start + 8)) for start in range(0, 512, 8)]
    assert padding(grouped, lengths) < 0.15 < 0.4 < padding(mixed, lengths)
    assert len(grouped) < 1.5 * len(batches)


@given(st.lists(st.integers(2, 600), min_size=1, max_size=9), st.integers(16, 2000))
def test_no_other_cut_costs_less(lengths: list[int], budget: int) -> None:
    """The cut is the cheapest of all that keep to the budget, by trying every one of them."""

    def cost(groups: list[list[int]]) -> int:
        return sum(OVERHEAD + len(group) * max(lengths[index] for index in group) for group in groups)

    def fits(group: list[int]) -> bool:
        return len(group) == 1 or len(group) * max(lengths[index] for index in group) <= budget

    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    every = (
        [order[start:end] for start, end in itertools.pairwise([0, *cuts, len(order)])]
        for count in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), count)
    )
    least = min(cost(groups) for groups in every if all(map(fits, groups)))
    assert cost(by_budget(range(len(lengths)), lengths, budget)) == least


def padding(batches: list[list[int]], lengths: list[int]) -> float:
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize(
    "fields, steps",
    [
        ({"epochs": 3}, 9),
        ({"epochs": 0.5}, 2),
        ({"epochs": 0.01}, 1),
        ({"steps": 7}, 7),
        ({"steps": 7, "epochs": 100}, 7),
    ],
)
def test_steps_come_from_epochs_unless_given(fields: dict[str, float], steps: int) -> None:
    """33 examples in batches of at most 16 are three steps a pass; `steps` overrides `epochs`."""
    assert batch_plan.total_steps(33, TrainSpec(batch_size=16, **fields)) == steps  # type: ignore[arg-type]


@given(lengths=LENGTHS, budget=st.integers(16, 2000))
def test_micro_batches_keep_the_budget(lengths: list[int], budget: int) -> None:
    """A micro-batch has at most the budget of padded tokens, or one example; together they are the step."""
    groups = by_budget(range(len(lengths)), lengths, budget)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= budget
