"""The process that sends journals to the trackers: `python -m tasks.tracking.trackers.main [RUN_ID]`.

It is a process of its own because the trackers' packages start threads, catch signals and wait at the end of a process,
none of which a run is to notice. It sends until its stdin closes, as it does when the run's process dies, then once
more, and writes a report of each tracker to its stdout, which is the packages' no more: what they print there is lost,
and a process that they leave behind does not hold it open.
"""

import logging
import os
import sys
import threading
from typing import TextIO

from backprop_core.runtime.redaction import blank_logs
from backprop_core.runtime.settings import settings
from tasks.tracking.trackers.forwarding import Forwarder
from tasks.tracking.trackers.notes import wanted

EVERY = 3.0  # seconds


def main(own: str | None) -> None:
    os.nice(5)  # a run computes beside it
    reports = own_stdout()
    blank_logs()
    config, ended = settings(), threading.Event()
    threading.Thread(target=wait_for_end, args=(ended,), daemon=True).start()
    work = [
        threading.Thread(target=keep_sending, args=(Forwarder(config, name, own), ended, reports))
        for name in wanted(config)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()


def own_stdout() -> TextIO:
    """The stdout of this process, which no child process inherits; what else writes to stdout writes to nothing."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    return kept


def wait_for_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def keep_sending(forwarder: Forwarder, ended: threading.Event, reports: TextIO) -> None:
    """Send every few seconds, and once more at the end."""
    while not ended.is_set():
        forwarder.round()
        ended.wait(EVERY)
    forwarder.round()
    print(forwarder.report().model_dump_json(), file=reports, flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what matters is in the reports
    main(sys.argv[1] if len(sys.argv) > 1 else None)
