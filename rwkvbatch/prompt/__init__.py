"""Tokenizer, prompt templates, incremental decoding, escaping."""

from __future__ import annotations
