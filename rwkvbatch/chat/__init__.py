"""The interactive session: loop, slash commands, transcript."""
