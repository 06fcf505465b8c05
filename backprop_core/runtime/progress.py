"""How far something is."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]  # gets how much is done, of how much
