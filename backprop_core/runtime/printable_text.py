"""Text of others, without what controls a terminal or a page."""


def printable(text: str) -> str:
    """`text` with a replacement character for each control character; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
