"""`backprop line rename`: the records of a line get another name, and where its rows are put stays."""

from collections.abc import Callable
from pathlib import Path

from backprop_core.lines import renaming
from backprop_core.lines.deletion import DeletedLine, described, has_records
from backprop_core.lines.renaming import RenamedLine, first_name
from backprop_core.runtime.settings import Settings
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import StoreLayout
from backprop_core.store.locks import nothing


def would_rename(line: str, to: str, by: str, config: Settings) -> DeletedLine | None:
    """What the store has of a line, under its new name if a renaming was cut off; None if it has nothing.

    Raises ConfigInvalid, RunActive.
    """
    store = Store(config.store_path)
    try:
        renaming.check_free(line, to, store)
        now = to if renaming.unfinished(line, to, store.layout) and not has_records(line, store) else line
        return described(now, by, store) if has_records(now, store) else None
    finally:
        store.close()


def is_cut_off(line: str, to: str, config: Settings) -> bool:
    """Whether this renaming has begun and has not ended."""
    return renaming.unfinished(line, to, StoreLayout(config.store_path)) is not None


def rename(
    line: str,
    to: str,
    by: str,
    config: Settings,
    first: Callable[[], None] = nothing,
    last: Callable[[], None] = nothing,
) -> RenamedLine:
    """Rename a line of the store, between `first` and `last`. Raises ConfigInvalid, RunActive, and what those raise."""
    store = Store(config.store_path)
    try:
        return renaming.rename(line, to, by, store, first, last)
    finally:
        store.close()


def name_now(line: str, config: Settings) -> str | None:
    """The name of a line that was renamed; None if no line had this name, or one has it again."""
    return renaming.name_now(line, StoreLayout(config.store_path))


def check_rows(line: str, config: Settings) -> None:
    """Raise ConfigInvalid if where `data put` would put rows of this line, those of a renamed one stand."""
    renaming.check_rows(line, StoreLayout(config.store_path))


def directory_of_rows(line: str, config: Settings) -> Path:
    """Where `data put` puts the rows of a line: a renamed one keeps its directory."""
    return config.layout.received(first_name(line, StoreLayout(config.store_path)))
