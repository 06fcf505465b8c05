-- MLflow's own databases beside Prefect's; run once, when the volume is empty.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
