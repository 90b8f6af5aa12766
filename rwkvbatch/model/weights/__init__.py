"""Weights files of every kind: their tables of contents, and their tensors under the names in the file."""
