"""Versions of a line, its champion, and what may be pruned."""
