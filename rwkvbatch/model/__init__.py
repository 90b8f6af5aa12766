"""Models: checkpoints, weights, recurrent states, the forward pass and its operations."""
