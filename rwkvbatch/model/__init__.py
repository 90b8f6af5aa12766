"""Checkpoint to weights, recurrent states, the forward pass, and the operations it is written in."""

from __future__ import annotations

READ_SUFFIXES = (".pth", ".safetensors", ".st", ".gguf")
"""Endings that may be left out of a model's name, in the order in which they are tried."""

MODEL_VARIABLE = "RWKVBATCH_MODEL"
"""The environment variable that names the model where nothing else does."""
