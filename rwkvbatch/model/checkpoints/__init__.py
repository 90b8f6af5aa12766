"""Checkpoints: reads tensors under the official names, merges adapters, and describes files and their memory use."""
