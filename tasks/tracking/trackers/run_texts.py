"""What all trackers call a run, and which of its labels they get."""

from collections.abc import Mapping

from backprop_core.runtime.settings import Settings
from tasks.tracking.journal import NAME, NOTE

PREFIX = 8  # characters of a run_id


def run_name(settings: Settings, run_id: str) -> str:
    """`backprop-1a2b3c4d`."""
    return f"{settings.namespace}-{run_id[:PREFIX]}"


def labels(tags: Mapping[str, str]) -> dict[str, str]:
    """The labels of a run without its name and its description, which may quote answers."""
    return {name: text for name, text in tags.items() if name not in (NAME, NOTE)}
