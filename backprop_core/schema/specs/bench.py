"""BenchSpec: which settings `bench` compares."""

import re
from typing import Annotated, get_args

from pydantic import AfterValidator, Field

from backprop_core.schema.records import Spec
from backprop_core.schema.specs.training import MOST_REPLAY, MergeSpec, Strategy

WRITTEN = re.compile(r"(?P<strategy>[a-z-]+)(?P<merge_a>\+a)?(?:@(?P<weight>.+))?")
LANGUAGE = "a strategy, +a to average A too, @ and lambda: slao, slao+a, average, slao+a@1/i, slao@0.5"


def merge_of(method: str) -> MergeSpec:
    """The merge spec behind a name such as `slao+a@1/i`. Raises ValueError."""
    found = WRITTEN.fullmatch(method)
    if not found or found["strategy"] not in get_args(Strategy):
        raise ValueError(f"{method} is none of: {LANGUAGE}; strategies: {', '.join(get_args(Strategy))}")
    weight = found["weight"]
    number = float(weight) if weight and re.fullmatch(r"[0-9.]+", weight) else weight
    return MergeSpec.model_validate(
        {"strategy": found["strategy"], "merge_a": bool(found["merge_a"]), "lambda": number}
    )


def method_of(merge: MergeSpec) -> str:
    """The name of a merge spec."""
    weight = f"@{merge.weight}" if merge.weight else ""
    return f"{merge.strategy}{'+a' if merge.merge_a else ''}{weight}"


def known(method: str) -> str:
    return method_of(merge_of(method))


Method = Annotated[str, AfterValidator(known)]


def replayed(value: float) -> float:
    """A value that one of the fields of `training` takes: whole rows, or a share. Raises ValueError."""
    if MOST_REPLAY < value < 1:
        raise ValueError(f"a share is at most {MOST_REPLAY:g}")
    if value > 1 and value != int(value):
        raise ValueError(f"{value:g} rows are not a whole number")
    return value


class BenchSpec(Spec):
    """Which settings are compared, beside the present ones: every combination of strategy, replay and rate."""

    strategies: list[Method] = Field(
        ["sequential", "slao", "slao+a", "average"], min_length=1, description=f"How to merge: {LANGUAGE}."
    )
    replay: list[Annotated[float, Field(ge=0, le=1_000_000), AfterValidator(replayed)]] = Field(
        [0, 20],
        min_length=1,
        description="Replay: rows of each earlier task, or below 1 a share of each earlier dataset's rows, at most "
        f"{MOST_REPLAY:g}.",
    )
    rates: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [], description="Learning rates; default: the present one."
    )
    orders: int = Field(3, ge=1, le=100, description="Orders of the datasets: the given one, and others by chance.")
    seeds: int = Field(1, ge=1, le=100, description="Seeds of each order.")
    rows: int | None = Field(None, ge=1, description="Train on the first N rows of each dataset by hash; default: all.")
