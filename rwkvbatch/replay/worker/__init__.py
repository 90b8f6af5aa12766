"""From tasks to rows, in one process: models, prompts, the turns of a conversation, and their rows."""
