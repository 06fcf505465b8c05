"""What a row teaches, and its identity: rows with the same identity are duplicates, whatever file they come from.

A row's identity is the sha256 of its roles and its normalized texts: Unicode NFC, `\\n` line endings, no trailing
whitespace. All other whitespace counts, as it matters in code, YAML and tables. Turns after the last answer are neither
trained nor scored, so they do not count. Tools, calls, reasoning, names and weights count; the ids of calls do not, but
which call a tool's answer belongs to does.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring  # what canonical JSON writes a text with; without an encoder, twice as fast
from typing import Any

from backprop_core.data.preference_rows import is_preference
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.data.tool_calls import Turn
from backprop_core.store.cache_keys import canonical

PLAIN = {"role", "content"}


def teaches(row: ChatRow) -> bool:
    """Whether the row has text to train on: an assistant's answer or call, or raw text. A preference has none."""
    if "text" in row:
        return bool(row["text"].strip())
    return not is_preference(row) and any(map(learned, row["messages"][1:]))


def taught(row: ChatRow) -> list[Turn]:
    """The turns up to the last answer; all if there is none."""
    turns: list[Turn] = row["messages"]
    if is_preference(row):
        return turns
    answers = [place for place, turn in enumerate(turns) if place and learned(turn)]
    return turns[: answers[-1] + 1] if answers else turns


def identity(row: ChatRow) -> bytes:
    """sha256 of the normalized row: canonical JSON of (role, text) for each turn, and of what else it carries."""
    if "text" in row:
        return hashed([pair("text", row["text"])])
    ids: dict[str, int] = {}
    parts = [part(turn, ids) for turn in taught(row)]
    beside: dict[str, Any] = {name: compared(row[name], {}) for name in ("tools", "label") if name in row}
    beside |= {name: [part(turn, ids) for turn in row[name]] for name in ("chosen", "rejected") if name in row}
    return hashed([*parts, *([canonical(beside)] if beside else [])])


def hashed(parts: Iterable[str]) -> bytes:
    return hashlib.sha256(f"[{','.join(parts)}]".encode()).digest()


def part(turn: Turn, ids: dict[str, int]) -> str:
    """Canonical JSON of a turn: `[role, text]`, and an object with what else it has. `ids` numbers the calls' ids."""
    if turn.keys() == PLAIN:
        return pair(turn["role"], turn["content"])
    more = {name: compared(turn[name], ids, name) for name in sorted(turn.keys() - PLAIN)}
    return canonical([turn["role"], normalised(turn["content"]), more])


def pair(role: str, text: str) -> str:
    return f"[{encode_basestring(role)},{encode_basestring(normalised(text))}]"


def compared(value: Any, ids: dict[str, int], name: str = "") -> Any:
    """A JSON value with normalized strings; a call's id becomes its number in the row."""
    match value:
        case str() if name in ("id", "tool_call_id"):
            return ids.setdefault(value, len(ids))
        case str():
            return normalised(value)
        case list():
            return [compared(item, ids) for item in value]
        case Mapping():
            inside = name == "arguments"  # an argument may be called id
            return {key: compared(item, ids, "" if inside else key) for key, item in value.items()}
    return value


def normalised(text: str) -> str:
    """Normalize what cannot change a text's meaning: Unicode composition, line endings, trailing whitespace."""
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    return composed.replace("\r\n", "\n").replace("\r", "\n").rstrip()
