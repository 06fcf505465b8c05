"""One LoRA training run: plan, loop, checkpoint."""
