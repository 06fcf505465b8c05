"""Lines: versions, the champion, and pruning of the store."""
