"""`results.jsonl`: rows, the lines that they become, and a store that never loses one."""
