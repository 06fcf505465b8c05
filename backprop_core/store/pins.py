"""What a person keeps: artifacts that no prune removes."""

from collections.abc import Iterable

from backprop_core.store.artifacts import Store, remove_file, write_atomic


def pin(name: str, digests: Iterable[str], store: Store) -> None:
    """Keep these artifacts until `unpin`."""
    write_atomic(store.layout.pin(name), "".join(f"{digest}\n" for digest in sorted(digests)))


def unpin(name: str, store: Store) -> bool:
    """Keep them no longer; whether they were kept."""
    path = store.layout.pin(name)
    known = path.is_file()
    remove_file(path)
    return known


def pinned(store: Store) -> dict[str, set[str]]:
    """Digests that are kept, by name."""
    paths = sorted(store.layout.pins.glob("*.txt"))
    return {path.stem: set(path.read_text(encoding="utf-8").split()) for path in paths}
