"""Checks that optional packages (extras) are installed, before they are needed."""

import importlib.util
from collections.abc import Sequence

from backprop_core.errors import ExtraMissing

QLORA = ("bitsandbytes", "accelerate")


def require(packages: Sequence[str], *, what: str, extra: str) -> None:
    """Raise ExtraMissing if a package that `what` needs is not installed. Imports nothing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ExtraMissing(
            f"{what} needs {' and '.join(missing)}", hint=f"pip install 'backpropagate-pipeline[{extra}]'"
        )
