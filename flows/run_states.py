"""The names of states in which flow runs of ours wait or end, as every list of Prefect's UI shows them."""

STATES = {"finished": "Completed", "rejected": "Rejected", "unchanged": "Unchanged"}  # by the status of a result
WAITING = "Waiting for approval"
