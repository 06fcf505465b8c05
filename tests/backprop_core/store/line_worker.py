"""A machine that adds versions to a line of a store: `python -m … ROOT ADDRESS VERSIONS RUN`. Says what it does."""

import sys
from pathlib import Path

from backprop_core.errors import LeaseLost, StoreConflict
from backprop_core.lines.versions import Lines
from backprop_core.store import remote_leases, sharing
from backprop_core.store.artifacts import Store
from tests.backprop_core.lines.test_versions import version

remote_leases.LASTS, remote_leases.RENEWED, remote_leases.LOOK = 6.0, 1.0, 0.2


def main(root: Path, address: str, count: int, run: int) -> None:
    sharing.begin(root, address)
    store = Store(root)
    lines = Lines(store)
    for number in range(run, run + count):
        with store.lock("line-support"):
            print("took", flush=True)
            champion = lines.champion("support")
            try:
                added = lines.add("support", version(number), champion=champion)
                if added <= (champion or 0):  # what the killed process had added; the line has gone on since
                    continue
                lines.set_champion("support", added)
            except (LeaseLost, StoreConflict) as error:
                print(error.code, flush=True)
                raise
            print("moved", added, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
