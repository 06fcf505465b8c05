"""The command: `backprop`, or `python -m flows`."""

import sys

from backprop_core.runtime import garbage


def main() -> int:
    """Run one command.

    Garbage collection starts in `flows.cli.prefect_environment.connected`, before work that takes long.
    """
    garbage.put_off()
    garbage.never_at_exit()
    from flows.cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
