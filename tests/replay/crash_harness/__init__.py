"""Processes that are killed, and what they must leave: `python -m tests.replay.crash_harness DIRECTORY KIND`."""
