"""The type of progress callbacks."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]  # (done, total)
