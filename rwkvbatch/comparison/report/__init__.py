"""Output formats of a comparison: terminal, HTML, Markdown, CSV, JSON and JUnit XML."""
