"""Thirty nights of many lines, simulated: what a gate's question and back-off release, where the truth is known.

python -m benchmarks.simulated_nights

A line is its champion's true score and which held-out rows it has right. A night gives three answers in ten anew, so
that the true score changes by `gain(kind, share)` of the night's kind and of the share of it that is taken. Prints the
tables of docs/gate.md.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from backprop_core.evaluation.bootstrap import SAMPLES, SEED, spread
from backprop_core.evaluation.power import REDRAWN

Array = np.ndarray[Any, Any]
NIGHTS, ROWS, CHOOSING = 30, 150, 50
SHARES = np.array([1, 0.75, 0.5, 0.25])
CONFIDENCE = 0.95

# l = lines, r = held-out rows, s = shares


class World(NamedTuple):
    """How likely each kind of night is, what it gains as a + b·share, times the share, and where the lines begin."""

    chances: list[float]
    slopes: list[float]
    bends: list[float]
    begin: float
    lines: int

    def gain(self, kind_l: Array, share: Array | float) -> Array:
        made: Array = (np.array(self.slopes)[kind_l] + np.array(self.bends)[kind_l] * share) * share
        return made


WORLDS = {
    "half of a change can be better than all of it": World(
        [0.35, 0.3, 0.1, 0.25], [0, 0.02, -0.1, 0.1], [0, 0, 0, -0.14], 0.6, 300
    ),
    "the more of a change, the more it does": World([0.5, 0.25, 0.25], [0, 0.02, -0.03], [0, 0, 0], 0.7, 500),
}


class Gate(NamedTuple):
    question: Literal["better", "not_worse", "none"]
    margin: float = 0.0


def main() -> None:
    for name, world in WORLDS.items():
        print(f"\n{name}\n| gate | back-off | released | after {NIGHTS} nights | worst night in 1 % of the lines |")
        for gate in (Gate("better"), Gate("not_worse", 0.03), Gate("not_worse", 0.05), Gate("none")):
            for backs_off in (False, True):
                print(f"| {gate.question} {gate.margin} | {backs_off} | {went(world, gate, backs_off=backs_off)} |")


def went(world: World, gate: Gate, *, backs_off: bool) -> str:
    """Nights released, the champion's true score at the end, and its worst night, of all lines."""
    draw, lines = np.random.default_rng(5), world.lines
    score_l, worst_l, released = np.full(lines, world.begin), np.zeros(lines), 0.0
    right_lr = draw.random((lines, ROWS if backs_off else ROWS + CHOOSING)) < world.begin
    for _ in range(NIGHTS):
        kind_l = draw.choice(len(world.chances), size=lines, p=world.chances)
        share_l = chosen(draw, world, kind_l, score_l) if backs_off else np.ones(lines)
        gain_l = world.gain(kind_l, share_l)
        gain_l = np.where(score_l + gain_l > 0.95, 0, gain_l)
        new_lr = candidate(draw, right_lr, score_l, gain_l, share_l)
        passed_l = gate.question == "none" or low(new_lr, right_lr, gate.question) > -gate.margin
        gain_l = np.where(passed_l, gain_l, 0)
        right_lr = np.where(np.broadcast_to(passed_l, lines)[:, None], new_lr, right_lr)
        score_l, worst_l = score_l + gain_l, np.minimum(worst_l, gain_l)
        released += float(np.mean(passed_l))
    return f"{released:.1f} | {100 * score_l.mean():.1f} | {100 * np.quantile(worst_l, 0.01):.1f}"


def candidate(draw: np.random.Generator, right_lr: Array, score_l: Array, gain_l: Array, share_l: Array) -> Array:
    """Which rows the candidate has right: REDRAWN times the share of them are answered anew, better by the gain."""
    anew_l = REDRAWN * share_l
    again_lr = draw.random(right_lr.shape) < np.clip(score_l + gain_l / anew_l, 0, 1)[:, None]
    made: Array = np.where(draw.random(right_lr.shape) < anew_l[:, None], again_lr, right_lr)
    return made


def chosen(draw: np.random.Generator, world: World, kind_l: Array, score_l: Array) -> Array:
    """The share with the most right of CHOOSING other rows; all shares change the same rows."""
    size = (len(kind_l), CHOOSING)
    right, changes, luck = draw.random(size) < score_l[:, None], draw.random(size), draw.random(size)
    counts_sl = [
        np.where(
            changes < REDRAWN * share,
            luck < np.clip(score_l + world.gain(kind_l, share) / (REDRAWN * share), 0, 1)[:, None],
            right,
        ).sum(1)
        for share in SHARES
    ]
    best: Array = SHARES[np.argmax(counts_sl, axis=0)]
    return best


def low(new_lr: Array, old_lr: Array, question: str) -> Array:
    """The gate's lower bound of the gain, of all lines at once, with the samples that it draws of each."""
    draw, rows = np.random.default_rng(SEED), new_lr.shape[1]
    gain_lr = new_lr.astype(float) - old_lr
    if question == "not_worse":
        weights = draw.exponential(size=(SAMPLES, rows + 1))
        weights /= weights.sum(1, keepdims=True)
        drawn = weights @ np.c_[gain_lr, -old_lr.mean(1)].T
    else:
        mean_l = gain_lr.mean(1)
        counts = draw.multinomial(rows, np.full(rows, 1 / rows), size=SAMPLES) / rows
        drawn = mean_l + spread(rows, CONFIDENCE) * (counts @ gain_lr.T - mean_l)
    made: Array = np.quantile(drawn, 1 - CONFIDENCE, axis=0)
    return made


if __name__ == "__main__":
    main()
