"""Models for other programs: lm-evaluation-harness and Inspect. Each needs its own extra."""
