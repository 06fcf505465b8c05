"""Base models and LoRA adapters: finding, checking and loading them; chat templates; devices."""
