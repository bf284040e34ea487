"""What jobs do with the feature store: fill it from the tables and the log, compare it, and tell how it is."""
