"""What Prefect is told before it is imported."""

import os

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def quiet_prefect() -> None:
    """Set what keeps Prefect quiet and fast, but for what the user has set. Call it before Prefect is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
