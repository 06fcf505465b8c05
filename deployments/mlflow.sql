-- MLflow's own database beside Prefect's; run once, when the volume is empty.
CREATE DATABASE mlflow;
