"""The release transaction, Ollama, the Hub, the model card."""
