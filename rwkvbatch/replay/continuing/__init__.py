"""What the rows of a run depend on, and which rows of an existing run directory are also rows of a plan."""
