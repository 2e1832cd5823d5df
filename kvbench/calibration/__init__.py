"""Artefacts that methods need of a model, made once and kept as safetensors by weight hash."""
