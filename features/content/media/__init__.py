"""Media files: fetched, checked and decoded in bounded processes."""
