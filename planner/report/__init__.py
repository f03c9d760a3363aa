"""One result, many renderers: the terminal, CSV, JSON and Markdown walk the same tables."""
