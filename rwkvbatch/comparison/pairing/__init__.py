"""Variants paired with their baselines, and their rows matched with the baseline's."""
