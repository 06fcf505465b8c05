"""What a row teaches, and its identity: rows with the same identity are duplicates, whatever file they come from.

A row's identity is the sha256 of its roles and its normalized texts: Unicode NFC, `\n` line endings, no trailing
whitespace. All other whitespace counts, as it matters in code, YAML and tables. Turns after the last answer are neither
trained nor scored, so they do not count.
"""

import hashlib
import unicodedata
from json.encoder import encode_basestring  # what canonical JSON writes a text with; without an encoder, twice as fast

from backprop_core.data.row_formats import ChatRow


def teaches(row: ChatRow) -> bool:
    """Whether the row has text to train on: an assistant's answer, or raw text."""
    if "text" in row:
        return bool(row["text"].strip())
    return any(map(answers_something, row["messages"][1:]))


def taught(row: ChatRow) -> list[dict[str, str]]:
    """The turns up to the last answer; all if there is none."""
    turns: list[dict[str, str]] = row["messages"]
    answers = [place for place, turn in enumerate(turns) if place and answers_something(turn)]
    return turns[: answers[-1] + 1] if answers else turns


def answers_something(turn: dict[str, str]) -> bool:
    return turn["role"] == "assistant" and bool(turn["content"].strip())


def identity(row: ChatRow) -> bytes:
    """sha256 of the normalized row: canonical JSON of (role, text) for each turn."""
    parts = [("text", row["text"])] if "text" in row else [(turn["role"], turn["content"]) for turn in taught(row)]
    turns = ",".join(f"[{encode_basestring(role)},{encode_basestring(normalised(text))}]" for role, text in parts)
    return hashlib.sha256(f"[{turns}]".encode()).digest()


def normalised(text: str) -> str:
    """Normalize what cannot change a text's meaning: Unicode composition, line endings, trailing whitespace."""
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    return composed.replace("\r\n", "\n").replace("\r", "\n").rstrip()
