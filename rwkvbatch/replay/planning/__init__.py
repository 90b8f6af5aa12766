"""What to run: the cells of a grid, the tasks of a plan, their row numbers, and the tasks of each round."""
