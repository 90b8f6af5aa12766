"""Tokenizer, prompt template, incremental decoding, safe printing."""

from __future__ import annotations
