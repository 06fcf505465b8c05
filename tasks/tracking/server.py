"""MLflow's own server on the database of the home: one process, no job execution, artifacts as plain files."""

import os
from typing import Any

from backprop_core.runtime.settings import Settings
from tasks.tracking.connection import QUIET_AND_QUICK, answering, migrating, own_uri


def application(settings: Settings) -> Any:
    """MLflow's ASGI application, with the database made or brought up to date.

    Artifacts are in the home under the same URIs as without a server, so that both can be used in turn.
    """
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    os.environ |= {**QUIET_AND_QUICK, **own}
    from mlflow.server import constants, handlers

    settings.home_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = own_uri(settings)
    artifacts = settings.layout.mlflow_artifacts.as_uri()
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: artifacts,
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    with answering(settings), migrating(settings):
        handlers.initialize_backend_stores(database, database, artifacts)
    from mlflow.server.fastapi_app import app

    return app
