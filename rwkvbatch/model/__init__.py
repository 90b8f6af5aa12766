"""Models: checkpoints, weights, recurrent states, the forward pass and its operations."""

from __future__ import annotations

READ_SUFFIXES = (".pth", ".safetensors", ".st", ".gguf")
"""Endings that a model's name may omit, in the order in which they are tried."""

MODEL_VARIABLE = "RWKVBATCH_MODEL"
"""The environment variable with the default model file."""
