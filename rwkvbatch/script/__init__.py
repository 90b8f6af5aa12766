"""Conversation scripts: records, file formats, lint, checks on replies."""
