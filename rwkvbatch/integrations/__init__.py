"""Models of other programs' interfaces: lm-evaluation-harness and Inspect. Each needs its own extra."""
