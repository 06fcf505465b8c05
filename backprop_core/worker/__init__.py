"""The process that touches tensors, and the handle its parent holds."""
