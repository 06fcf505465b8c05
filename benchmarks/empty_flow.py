"""The least that a recorded flow costs: one that returns at once, on a temporary Prefect server, and its MLflow run."""

import uuid

from backprop_core.runtime.settings import settings
from flows.cli.prefect_environment import connected, quiet_prefect, start_server


def main() -> None:
    """The same server, journal and sender as a real run; no stage, no store, no worker."""
    config = settings()
    quiet_prefect()
    start_server()
    with connected():
        from prefect import flow

        from tasks.tracking import Sender
        from tasks.tracking.journal import Journal

        @flow
        def empty() -> None:
            return None

        with Journal(config.journal_path, uuid.uuid4().hex) as journal:
            journal.start(line="default", name="empty")
            sender = Sender(config)
            sender.start()
            empty()
            journal.end("finished")
        sender.finish()


if __name__ == "__main__":
    main()
