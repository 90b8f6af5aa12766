"""Gates: `--fail-if` and `--fail-unless`, from the text of an expression to its result."""
