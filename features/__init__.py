"""The world as numbers: the data contract, sources, ids, content, histories, the feature store, the log."""
