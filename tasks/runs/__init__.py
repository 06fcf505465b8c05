"""A run from spec to result: resolve, check, execute, record, resume; plus prune, doctor and estimate."""
