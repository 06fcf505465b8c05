"""Text of others reaches a terminal or a page without what controls it."""

import sys
import unicodedata

from backprop_core.runtime.printable_text import printable

TEXTS = ["Größe\u00a0100\u202f%\n\tja", "日本語\u3000テキスト", "👩‍🚀 می‌خواهم", "plain"]


def test_text_of_any_language_stays() -> None:
    """Letters, emoji, spaces of any width, line breaks and tabs are as they were."""
    assert [printable(text) for text in TEXTS] == TEXTS


def test_no_control_character_stays() -> None:
    """Control characters, and those that turn the direction of text, are replaced, each by one character."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(every)
    assert len(shown) == len(every)
    left = {unicodedata.category(character) for character in shown} - {"Cc", "Cf"}
    assert {character for character in shown if unicodedata.category(character) == "Cc"} == {"\n", "\t"}
    assert {character for character in shown if unicodedata.category(character) == "Cf"} == {"\u200c", "\u200d"}
    assert not left & {"Cs", "Co", "Zl", "Zp"}
