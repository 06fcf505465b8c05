"""The command: `backprop`, or `python -m flows`."""

import atexit
import gc
import sys


def main() -> int:
    """Run one command.

    What it imports stays, so Python does not look it through for garbage: that would be a third of a short command, and
    at the end a second of a long one. What works for long turns the collection on
    (`flows.cli.prefect_environment.connected`).
    """
    gc.disable()
    atexit.register(gc.freeze)
    from flows.cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
