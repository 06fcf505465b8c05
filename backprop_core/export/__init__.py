"""Export: GGUF files, quantization, merged checkpoints, adapter packages, and the fidelity check."""
