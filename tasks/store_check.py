"""Reading everything that the store holds."""

from backprop_core.settings import Settings
from backprop_core.store import Finding, Store


def check(config: Settings) -> tuple[int, list[Finding]]:
    """How many artifacts there are, and what is wrong with which."""
    store = Store(config.store_path)
    return store.count(), list(store.check())
