"""Tokenizer, prompt template, incremental decoding, safe printing."""
