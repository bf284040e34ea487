"""Routes whose calls are too large for a URL."""
