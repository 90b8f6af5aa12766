"""The values of metrics in rows and in matched rows: of turns, of conversations, by group, of all variants."""
