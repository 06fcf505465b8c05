"""The worker process, which computes with tensors, and the parent's handle to it."""
