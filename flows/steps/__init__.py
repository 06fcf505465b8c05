"""What the flows do with a run, step by step; each step calls stages."""
