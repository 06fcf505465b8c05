"""PEFT files ↔ tensors. The same content is the same bytes in any process."""
