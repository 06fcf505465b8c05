"""The least that a deployment can run: one task that does nothing. No code of ours is imported."""

from prefect import flow, task


@task
def nothing() -> None:
    """Returns at once."""


@flow
def empty() -> None:
    """Runs it."""
    nothing()
