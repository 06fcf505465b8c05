"""The base model and LoRA adapters: found, checked, loaded; chat templates and devices."""
