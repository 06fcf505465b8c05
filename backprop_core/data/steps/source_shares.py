"""Caps and weights by source: which rows of a source are used, and how often each is trained.

A row's hash decides, so the order of the files and their rows does not matter: of a cap the first rows in an order of
their own, of a weight's fraction that share of the rows, each for itself.
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_index import SIZE, Mask, Positions, RowIndex, salted
from backprop_core.data.sources import in_order
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.specs.curation import SourceShare

OTHERS = 255  # number of the sources that no pattern matches
OVER = "over_max_rows"
NOT_SAMPLED = "not_sampled"
WORDS = SIZE // 8
SHOWN = 10  # names of files in an error


class Shares(NamedTuple):
    """Per row: whether it is over its source's cap, and how often it is trained."""

    over: Mask
    times: NDArray[np.uint8]


def source_of(file: str | None, shares: Sequence[SourceShare]) -> int:
    """The number of the first pattern that matches a file's name; that of a single file is empty."""
    matching = (number for number, share in enumerate(shares) if belongs(file, share))
    return next(matching, OTHERS)


def refuse_unused(files: Collection[str | None], shares: Sequence[SourceShare]) -> None:
    """Raise ConfigInvalid for a pattern to which none of several files belongs, as it would have no effect."""
    used = {source_of(file, shares) for file in files}
    names = sorted({file for file in files if file}, key=in_order)
    for number, share in enumerate(shares if names else ()):
        if number not in used:
            taken = next((shares[source_of(file, shares)].files for file in names if belongs(file, share)), None)
            why = f"only files that belong to {taken}, which stands before it" if taken else "no file"
            raise ConfigInvalid(f"curation.sources: {share.files} matches {why}", hint=f"the files are {some(names)}")


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def belongs(file: str | None, share: SourceShare) -> bool:
    return fnmatchcase(file or "", share.files)


def shared(rows: RowIndex, sources: Positions, shares: Sequence[SourceShare]) -> Shares:
    """What the shares say of rows, given the number of each row's source."""
    chance = np.frombuffer(salted(rows, "source:"), ">u8").reshape(-1, WORDS)
    over, times = np.zeros(len(rows), np.bool_), np.ones(len(rows), np.uint8)
    for number, share in enumerate(shares):
        own = np.flatnonzero(sources == number)
        if share.max_rows is not None:
            over[own[np.argsort(chance[own, 0], kind="stable")][share.max_rows :]] = True
        whole, part = divmod(share.weight, 1)
        times[own] = int(whole) + (chance[own, 1] < part * 2.0**64)
    return Shares(over, times)
