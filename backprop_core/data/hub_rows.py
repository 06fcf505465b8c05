"""The first rows of a Hub dataset, read through ranges of its files, so that the rest is not downloaded."""

import io
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from huggingface_hub import HfFileSystem

from backprop_core.data.decompression import Budget, Damaged, unpacked
from backprop_core.data.file_format import reading
from backprop_core.data.file_readers import head, inside, parse
from backprop_core.data.parsed_items import Item, Malformed
from backprop_core.data.sql_query import plain
from backprop_core.errors import InputValidationFailed

RANDOM = {"parquet", "arrow", "zip"}  # shapes that are not read from start to end
BLOCK = 1 << 18  # bytes of a request, at least


def write_first(count: int, files: Sequence[str], system: HfFileSystem, target: Path, encoding: str | None) -> None:
    """Write the first `count` rows of several files, in their order, as JSON lines.

    Raises InputValidationFailed for a damaged file, and errors of the Hub's client.
    """
    part = target.with_name(f"{target.name}.part")
    with part.open("w", encoding="utf-8", newline="\n") as lines:
        for item in islice(chain.from_iterable(rows_of(file, system, encoding) for file in files), count):
            value = str(item.value) if isinstance(item.value, Malformed) else plain(item.value)
            lines.write(json.dumps(value, sort_keys=True) + "\n")  # in ASCII, as a row may have half a surrogate pair
    part.replace(target)


def rows_of(file: str, system: HfFileSystem, encoding: str | None) -> Iterator[Item]:
    """The rows of one file, as far as they are taken."""
    with system.open(file, "rb", block_size=BLOCK) as remote:
        budget = Budget(remote.size, file)
        packed = io.BufferedReader(remote, BLOCK)
        stream = unpacked(packed, budget)
        how = reading(head(stream), file, said=encoding)
        is_random = how.shape in RANDOM and stream is packed
        try:
            yield from inside(packed, how, file, budget) if is_random else parse(stream, how, file, budget)
        except Damaged as error:
            raise InputValidationFailed(f"{file}: {error}", hint="use another file or revision") from error
        finally:
            packed.detach()
