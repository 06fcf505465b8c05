"""Removes quotes of forgotten rows from MLflow.

A local database is blanked as a file. A server gets the journals again, whose text is blanked: artifacts and tags are
replaced. It keeps parameters as they were first set.
"""

from pathlib import Path

from backprop_core.data.row_quotes import Quotes
from backprop_core.runtime.settings import Settings
from backprop_core.store.layout import JournalLayout
from tasks.tracking.connection import SQLITE, is_own, tracking_uri
from tasks.tracking.journal import bring_back, read_journal
from tasks.tracking.journal_lines import Started
from tasks.tracking.sender import noted, sync


def databases(settings: Settings) -> list[Path]:
    """The SQLite databases that runs are recorded in: the home's, and the one that the environment names."""
    uri = tracking_uri(settings)
    other = [Path(uri.removeprefix(SQLITE))] if uri.startswith(SQLITE) and not is_own(settings) else []
    return [settings.layout.mlflow_database, *other]


def quoting(settings: Settings, quotes: Quotes) -> dict[str, bool]:
    """The journals that quote a row, by run_id, and whether a parameter does."""
    journals, found = settings.layout.journal, dict[str, bool]()
    for directory in (journals, journals.sent):
        for path in sorted(directory.root.glob("*.jsonl")):
            if quotes.in_file(path):
                starts = [line for _, line in read_journal(path) if isinstance(line, Started)]
                text = "\n".join(value for line in starts for value in line.params.values())
                found[path.stem] = bool(quotes.hits(text.encode(errors="replace")))
    return found


def replace(settings: Settings, runs: dict[str, bool]) -> list[str]:
    """Send these journals to a server once more, now that they are blanked; returns what is left to do, in words."""
    if not runs or not tracking_uri(settings).startswith("http"):
        return []
    left = list[str]()
    for run_id, in_parameters in runs.items():
        sent = noted(settings, run_id)
        if sent and in_parameters:
            left.append(f"MLflow keeps parameters: delete its run {sent.runs.get(run_id, run_id)} there")
        elif sent:
            send_again(settings.layout.journal, run_id)
    if error := sync(settings).error:
        left.append(f"MLflow: {error}; `backprop sync` replaces what it has")
    return left


def send_again(journals: JournalLayout, run_id: str) -> None:
    """Forget that a journal was sent: sending it again replaces artifacts and tags, and repeats nothing."""
    bring_back(journals, run_id)
    journals.sent_note(run_id).unlink(missing_ok=True)
