"""Files of other tools: Hugging Face checkpoints, PEFT adapters, importance matrices."""
