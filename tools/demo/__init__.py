"""The bundled demo model: its corpus, its network for training, and the loops that fit it."""
