"""Kills processes and checks what they leave: `python -m tests.replay.crash_harness DIRECTORY KIND`."""
