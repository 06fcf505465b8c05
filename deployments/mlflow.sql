-- MLflow's own databases beside Prefect's, made once, when the volume is empty.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
