"""Forms that other programs load: GGUF, merged checkpoint, quantizations, and the check of each."""
