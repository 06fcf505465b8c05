"""For all tests: nothing is sent anywhere, and nothing of the user's own settings is seen."""

import os

for name in [name for name in os.environ if name.startswith(("BACKPROPAGATE_", "PREFECT_", "MLFLOW_"))]:
    del os.environ[name]
os.environ |= {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
