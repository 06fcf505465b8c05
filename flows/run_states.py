"""Names of the states in which flow runs wait or end, as Prefect's UI lists them."""

STATES = {"finished": "Completed", "rejected": "Rejected", "unchanged": "Unchanged"}  # by the status of a result
WAITING = "Waiting for approval"
