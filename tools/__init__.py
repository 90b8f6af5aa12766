"""Programs that make what ships with the package; nothing here is installed."""
