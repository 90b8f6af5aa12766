"""Identifies what the rows of a run depend on, and the rows of an existing run directory that a plan reuses."""
