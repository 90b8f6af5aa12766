"""From settings and scripts to a plan: cells, places, parts. Loads no model."""
