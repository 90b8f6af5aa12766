"""A run directory: its lock, its manifest, and what stands beside the rows."""
