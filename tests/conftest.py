"""For all tests: nothing is sent anywhere, and nothing of the user's own settings is seen."""

import atexit
import os
import shutil
import tempfile

for name in [name for name in os.environ if name.startswith(("BACKPROPAGATE_", "PREFECT_", "MLFLOW_"))]:
    del os.environ[name]
os.environ |= {
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
}
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
