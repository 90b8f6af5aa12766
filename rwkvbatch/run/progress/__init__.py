"""How a run is going, told to whoever wants to know: lines, a bar, Prometheus, logs."""
