"""The Prefect tasks: one a stage, their cache, their names."""
