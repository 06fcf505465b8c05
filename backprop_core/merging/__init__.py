"""Merging adapters: SLAO and other strategies, and statistics of a merge."""
