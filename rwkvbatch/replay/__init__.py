"""From a plan to rows: grids, tasks, workers, and the runner that steps them."""
