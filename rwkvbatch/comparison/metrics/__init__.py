"""The metrics: one table with the name, the unit, the direction and the value of each."""
