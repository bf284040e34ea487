"""Contents of items and queries, and their vectors."""
