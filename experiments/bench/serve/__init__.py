"""`recsys bench serve`: the service under load from another process."""
