"""A run from its spec to its result: resolve, check, carry out, record, resume."""
