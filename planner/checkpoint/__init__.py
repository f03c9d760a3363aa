"""Other people's files as models: Hugging Face config.json, checkpoint folders, GGUF files, the hub."""
