"""Artifacts by digest, cache keys, leases, pins and locks."""
