"""A transformers model, and the adapter on it, as one GGUF file."""

from backprop_core.gguf.architecture import check_supported
from backprop_core.gguf.writer import OUTTYPES, Outtype, convert

__all__ = ["OUTTYPES", "Outtype", "check_supported", "convert"]
