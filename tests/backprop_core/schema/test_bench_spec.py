"""Names of merge settings in `bench`."""

from itertools import product
from typing import get_args

import pytest
from pydantic import ValidationError

from backprop_core.schema.specs import BenchSpec, MergeSpec, Strategy, merge_of, method_of


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
