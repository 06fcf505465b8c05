"""The format of a home and of a store: a number that is raised when older code could no longer read them.

Homes and stores of before the number are of format 1. What is inside has numbers of its own: artifacts in their
manifest, versions, results and journals in a field `format`.
"""

import json
from pathlib import Path

from backprop_core.errors import FormatNewer
from backprop_core.store.artifacts import write_atomic

FORMAT = 1


def format_of(mark: Path) -> int:
    """The number in a mark; 1 without one."""
    try:
        return int(json.loads(mark.read_bytes())["format"])
    except FileNotFoundError:
        return 1
    except (ValueError, KeyError, TypeError) as error:
        raise FormatNewer(f"{mark} cannot be read", hint=f'write {{"format": {FORMAT}}} into it') from error


def check(mark: Path) -> None:
    """Raise FormatNewer if the directory of this mark was written by a newer version."""
    if (found := format_of(mark)) > FORMAT:
        raise FormatNewer(
            f"{mark.parent} has format {found}, and this version reads formats up to {FORMAT}",
            hint="install the version that wrote it, or put back the backup that its upgrade has made",
        )


def mark(path: Path) -> None:
    """Note the current format, unless it is noted."""
    check(path)
    if not path.exists():
        write_atomic(path, json.dumps({"format": FORMAT}))
