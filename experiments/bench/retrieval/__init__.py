"""The benchmark of retrieval."""
