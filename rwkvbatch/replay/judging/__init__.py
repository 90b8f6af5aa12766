"""Runs checks on replies: on new ones, on those of existing rows, and with the verdicts of a judge."""
