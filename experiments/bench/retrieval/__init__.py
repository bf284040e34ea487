"""The benchmark of retrieval: recall, time and size of the indexes."""
