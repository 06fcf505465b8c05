"""Names of merge settings in `bench`."""

from itertools import product
from typing import get_args

import pytest
from pydantic import ValidationError

from backprop_core.schema.specs import BenchSpec, MergeSpec, Strategy, TrainSpec, merge_of, method_of


@pytest.mark.parametrize(
    ("strategy", "merge_a", "weight"), [*product(get_args(Strategy), (False, True), (None, "1/i", "1/sqrt(i)", 0.25))]
)
def test_every_merge_has_a_name_and_is_found_by_it(strategy: Strategy, merge_a: bool, weight: str | None) -> None:
    """A name is one spec, and a spec one name."""
    spec = MergeSpec.model_validate({"strategy": strategy, "merge_a": merge_a, "lambda": weight})
    assert merge_of(method_of(spec)) == spec


@pytest.mark.parametrize("name", ["", "slao+b", "fisher", "slao@", "slao@2", "slao@x", "slao+a@", "SLAO", "slao +a"])
def test_other_names_are_refused(name: str) -> None:
    """What names no merge is an error that lists the strategies, or says what lambda may be."""
    with pytest.raises(ValidationError):
        BenchSpec(strategies=[name])


@pytest.mark.parametrize(
    ("field", "value", "works"),
    [
        *[("replay", value, True) for value in (0, 0.005, 0.1, 1, 20)],
        *[("replay", value, False) for value in (0.11, 0.5, 1.5, 20.4, -1, 1_000_001, float("nan"))],
        *[("rates", value, works) for value, works in ((1e-4, True), (0.99, True), (1, False), (0, False))],
    ],
)
def test_what_is_compared_can_be_trained(field: str, value: float, works: bool) -> None:
    """A replay or a rate is compared only if a run takes it, so that what is advised can be set."""
    name = "learning_rate" if field == "rates" else "replay" if value < 1 else "replay_rows"
    for spec, given in ((BenchSpec, {field: [value]}), (TrainSpec, {name: value})):
        if works:
            spec.model_validate(given)
            continue
        with pytest.raises(ValidationError):
            spec.model_validate(given)
