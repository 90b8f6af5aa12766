"""Checkpoint to weights, recurrent states, the forward pass, and the operations it is written in."""
