"""Text of others, without what controls a terminal or a page."""

import unicodedata

JOINERS = "\u200c\u200d"  # in emoji and in the scripts of Persian and Indian languages


def printable(text: str) -> str:
    """`text` with a replacement character for each control or bidirectional character; spaces and line breaks stay."""
    return "".join(c if is_harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def is_harmless(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or c in JOINERS or unicodedata.category(c) == "Zs"
