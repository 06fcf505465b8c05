"""Scores, generated answers, metrics, judge, lm-evaluation-harness, lambda search, forgetting matrix, gate."""
