"""Publishing: the release transaction, Ollama, the Hugging Face Hub, the model card."""
