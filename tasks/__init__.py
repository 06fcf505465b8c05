"""The Prefect and MLflow side of the core: stage tasks, flow runs, tracking."""
