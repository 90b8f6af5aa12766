"""Hostile files for every reader of files of other programs: written by hand, and valid ones changed at random."""
