"""Runs as tables: run directories, results in memory and results of other programs, with one row per turn."""
