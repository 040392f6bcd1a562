"""Packaging for Ollama: model names, prompt templates, Modelfiles and the model store."""
