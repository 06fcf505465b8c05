"""Plans which examples are in which optimizer step: pure functions, no state."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from backprop_core.schema.specs import TrainSpec

WINDOW = 8  # batches sorted by length together: a larger window pads less but makes batches less varied


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Number of batches for `count` examples. Batch sizes differ by at most one, so no batch is a small remainder."""
    return math.ceil(count / batch_size)


def total_steps(count: int, spec: TrainSpec) -> int:
    """Optimizer steps for `count` examples: `spec.steps`, or `spec.epochs` passes rounded to whole steps."""
    return spec.steps or max(1, round(spec.epochs * batches_per_epoch(count, spec.batch_size)))


def epoch_batches(
    lengths: Sequence[int], *, seed: int, epoch: int, batch_size: int, ordered: bool = False
) -> list[list[int]]:
    """The batches of one epoch: examples shuffled, sorted by length within windows, then batches shuffled.

    `ordered`: the examples are in the order in which they are trained.
    """
    rng = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    count = batches_per_epoch(len(order), batch_size)
    edges = [len(order) * batch // count for batch in range(count + 1)]
    if ordered:
        return [order[start:end] for start, end in itertools.pairwise(edges)]
    rng.shuffle(order)
    for first in range(0, count, WINDOW):
        window = slice(edges[first], edges[min(first + WINDOW, count)])
        order[window] = sorted(order[window], key=lambda index: (lengths[index], index))
    batches = [order[start:end] for start, end in itertools.pairwise(edges)]
    rng.shuffle(batches)
    return batches


def batches_from(
    step: int, lengths: Sequence[int], spec: TrainSpec, passes: Sequence[Sequence[int]], *, ordered: bool = False
) -> Iterator[list[int]]:
    """The batches of steps `step`, `step + 1`, … (counted from 0) up to the last one.

    `passes` are the examples of each epoch, repeated cyclically; `ordered`: in the order in which they are trained.
    """
    left = total_steps(len(passes[0]), spec) - step
    for epoch, examples in enumerate(itertools.cycle(passes)):
        if left <= 0:
            return
        if step >= (count := batches_per_epoch(len(examples), spec.batch_size)):
            step -= count
            continue
        own = [lengths[index] for index in examples]
        batches = epoch_batches(own, seed=spec.seed, epoch=epoch, batch_size=spec.batch_size, ordered=ordered)
        batches = batches[step:][:left]
        yield from ([examples[index] for index in batch] for batch in batches)
        left -= len(batches)
        step = 0


def evaluation_steps(total: int, spec: TrainSpec) -> set[int]:
    """The steps after which early stopping evaluates a run of `total` steps; the last one is among them."""
    asked = spec.early_stopping
    if asked is None:
        return set()
    every = max(1, round(asked.eval_steps if asked.eval_steps >= 1 else asked.eval_steps * total))
    return {*range(every, total, every), total}
