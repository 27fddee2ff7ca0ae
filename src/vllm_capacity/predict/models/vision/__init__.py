"""Encoders of images, video and sound, one file per kind, as vLLM 0.32 builds them."""
