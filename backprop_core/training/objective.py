"""What a training step minimizes: the loss of answers to learn, of preferences, or of both.

An objective splits a step's examples into micro-batches and gives each one's part of the step's loss. The parts add up
to the same loss for every split.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from backprop_core.data import batching, preference_items
from backprop_core.data.batching import Item, Items, by_budget, collate
from backprop_core.data.log_probs import log_probs
from backprop_core.data.preference_items import Pair, Rating, Unit, Units
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import ReferenceLogProbs, RowsRef
from backprop_core.schema.specs import PreferenceSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import reference
from backprop_core.training.distributed import Ranks
from backprop_core.training.loss import loss_sum
from backprop_core.training.preference_loss import dpo, kto, odds_ratio

References = Sequence[tuple[float, ...]]  # of each unit: the log-probabilities of its sides under the reference
KINDS = (Item, Pair, Rating)


class AnswersObjective:
    """The mean negative log-likelihood of the label tokens of a step."""

    def __init__(self, base: LoadedBase, items: Sequence[Item]) -> None:
        self.base, self.items = base, items
        self.widths = [len(item) for item in items]  # padded tokens of each example alone
        self.labels = 0

    def begin(self, batch: Sequence[int]) -> int:
        """Take up a step's examples; returns their weight in the loss of several steps."""
        self.labels = sum(len(self.items[index].at_n) for index in batch)
        return self.labels

    def look(self, share: Sequence[int], budget: int, ranks: Ranks) -> list[int]:
        """What has to be known of a process's share before its gradients; the examples that ran out of memory."""
        return []

    def micro_batches(self, share: Sequence[int], budget: int) -> list[list[int]]:
        return by_budget(share, self.widths, budget)

    def part(self, indices: Sequence[int]) -> Tensor:
        """A micro-batch's part of the step's loss."""
        return answers_loss(self.base, [self.items[index] for index in indices]) / self.labels


class PreferenceObjective:
    """The mean loss of a step's examples, each kind in its own unit: s/N · SFT + weight/N · (pairs + ratings).

    Of the N examples s are answers to learn, whose mean is over label tokens. A pair's loss is DPO's, KTO's or ORPO's,
    a rated answer's is KTO's. ORPO adds the negative log-likelihood of the chosen answers, a mean over their tokens.
    """

    def __init__(self, base: LoadedBase, units: Sequence[Unit], references: References, spec: PreferenceSpec) -> None:
        self.base, self.units, self.references, self.spec = base, units, references, spec
        self.widths = [len(unit) if isinstance(unit, Item) else unit.width for unit in units]
        self.examples = self.labels = self.learned = self.pairs = self.chosen = self.rated = 0
        self.divergence = 0.0

    def begin(self, batch: Sequence[int]) -> int:
        """Take up a step's examples; returns their weight in the loss of several steps."""
        units = [self.units[index] for index in batch]
        items = [unit for unit in units if isinstance(unit, Item)]
        pairs = [unit for unit in units if isinstance(unit, Pair)]
        self.examples, self.learned, self.pairs = len(units), len(items), len(pairs)
        self.rated = len(units) - len(items) - len(pairs)
        self.labels = sum(len(item.at_n) for item in items)
        self.chosen = sum(len(pair.chosen.at_n) for pair in pairs)
        return len(units)

    def look(self, share: Sequence[int], budget: int, ranks: Ranks) -> list[int]:
        """Estimate KTO's divergence over all ratings of the step; the examples that ran out of memory.

        It is the mean log-ratio of answers to other questions, or 0 if that is negative, without a gradient.
        """
        if not self.rated:
            return []
        total, too_large = self.log_ratios_of_others(share, budget)
        self.divergence = max(0.0, sum(ranks.everyone(total)) / self.rated)
        return too_large

    def log_ratios_of_others(self, share: Sequence[int], budget: int) -> tuple[float, list[int]]:
        """The sum over a process's ratings, in evaluation mode, so that no random number is drawn."""
        total, was_training = 0.0, self.base.model.training
        self.base.model.eval()
        try:
            for indices in by_budget([i for i in share if isinstance(self.units[i], Rating)], self.widths, budget):
                found = self.others(indices)
                if found is None:  # its traceback keeps tensors alive: recover only after it is freed
                    return total, indices
                total += found
        finally:
            self.base.model.train(was_training)
        return total, []

    @torch.no_grad()
    def others(self, indices: Sequence[int]) -> float | None:
        """The sum of the log-ratios of answers to other questions; None if memory runs out."""
        try:
            own_b = log_probs(self.base, [self.ratings(index).other for index in indices])
        except torch.OutOfMemoryError:
            return None
        return float((own_b - self.reference(indices, 1)).sum())

    def ratings(self, index: int) -> Rating:
        unit = self.units[index]
        assert isinstance(unit, Rating)
        return unit

    def micro_batches(self, share: Sequence[int], budget: int) -> list[list[int]]:
        """Micro-batches of one kind each; the answers of a pair stay together."""
        return [group for kind in self.by_kind(share) for group in by_budget(kind, self.widths, budget)]

    def by_kind(self, share: Sequence[int]) -> Iterator[list[int]]:
        def kind(index: int) -> int:
            return KINDS.index(type(self.units[index]))

        for _, group in groupby(sorted(share, key=kind), key=kind):
            yield list(group)

    def part(self, indices: Sequence[int]) -> Tensor:
        """A micro-batch's part of the step's loss."""
        units = [self.units[index] for index in indices]
        if items := [unit for unit in units if isinstance(unit, Item)]:
            return answers_loss(self.base, items) * (self.learned / self.examples / self.labels)
        pairs = [unit for unit in units if isinstance(unit, Pair)]
        loss = self.of_pairs(indices, pairs) if pairs else self.of_ratings(indices)
        return loss * (self.spec.weight / self.examples)

    def of_pairs(self, indices: Sequence[int], pairs: Sequence[Pair]) -> Tensor:
        """The sum of the losses of pairs."""
        sides = [side for pair in pairs for side in pair.sides]
        chosen_b, rejected_b = log_probs(self.base, sides).view(-1, 2).unbind(1)
        if self.spec.loss == "orpo":
            counts_b2 = torch.tensor(
                [[len(side.at_n) for side in pair.sides] for pair in pairs], device=chosen_b.device
            )
            ratios_b = odds_ratio(chosen_b / counts_b2[:, 0], rejected_b / counts_b2[:, 1])
            return self.spec.beta * ratios_b.sum() - chosen_b.sum() * (self.pairs / self.chosen)
        margin_b = chosen_b - rejected_b - (self.reference(indices, 0) - self.reference(indices, 1))
        return dpo(margin_b, beta=self.spec.beta).sum()

    def of_ratings(self, indices: Sequence[int]) -> Tensor:
        """The sum of the losses of rated answers."""
        units = [self.ratings(index) for index in indices]
        log_ratio_b = log_probs(self.base, [unit.answer for unit in units]) - self.reference(indices, 0)
        good_b = torch.tensor([unit.good for unit in units], device=log_ratio_b.device)
        weights = {"good": self.spec.good_weight, "bad": self.spec.bad_weight}
        return kto(log_ratio_b, good_b, self.divergence, beta=self.spec.beta, **weights).sum()

    def reference(self, indices: Sequence[int], side: int) -> Tensor:
        """(b,): log-probabilities under the reference."""
        return torch.tensor([self.references[index][side] for index in indices], device=self.base.device)


Objective = AnswersObjective | PreferenceObjective


def load(
    base: LoadedBase, rows: RowsRef, spec: TrainSpec, known: ReferenceLogProbs | None, store: Store
) -> tuple[Items | Units, Objective]:
    """The examples of some rows, and what a step of them minimizes. Raises what loading them raises."""
    if spec.preference.loss is None:
        items = batching.load(base, rows, max_length=spec.limit, store=store)
        return items, AnswersObjective(base, items)
    assert known, "made before the training"
    units = preference_items.load(base, rows, pairs_as=spec.preference.loss, max_length=spec.limit, store=store)
    return units, PreferenceObjective(base, units, reference.read(known, units, store), spec.preference)


def answers_loss(base: LoadedBase, items: Sequence[Item]) -> Tensor:
    """Sum of the negative log-likelihoods of a micro-batch's label tokens."""
    batch = collate(items, base.device)
    return loss_sum(base, base.states(batch.ids_bt, batch.lengths_b, batch.at_n), batch.labels_n)
