"""Checkpoints: tensors under the official names, checked; adapters merged; what they need and what they are."""
