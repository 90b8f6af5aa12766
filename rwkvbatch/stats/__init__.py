"""Statistics shared by `run` (adaptive repetitions) and `compare`: arrays in, numbers out."""
