"""Single dialogues: their selection, their changes between two variants, their failures and where these began."""
