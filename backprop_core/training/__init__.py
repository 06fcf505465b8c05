"""LoRA training: batch plan, loop, checkpoints, default hyperparameters, memory and time estimates."""
