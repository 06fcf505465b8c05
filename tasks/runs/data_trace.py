"""`backprop data trace`: where a row went. No Prefect."""

from backprop_core.errors import ConfigInvalid
from backprop_core.lines.row_trace import Trace, trace
from backprop_core.runtime.settings import Settings
from backprop_core.store.artifacts import Store


def data_trace(asked: str, config: Settings, *, most: int) -> Trace:
    """Where the rows with this id or text are. Raises ConfigInvalid for an empty text."""
    if not asked.strip():
        raise ConfigInvalid("there is no text to look for", hint="name a row's id, or text in it")
    store = Store(config.store_path)
    try:
        return trace(asked, store, most=most)
    finally:
        store.close()
