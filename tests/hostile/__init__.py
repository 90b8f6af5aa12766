"""Hostile files for every reader of files of other programs: made by hand and by seeded changes of sound ones."""
