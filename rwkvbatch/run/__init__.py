"""Plan, driver, durable store, manifest: replaying scripts turn by turn."""
