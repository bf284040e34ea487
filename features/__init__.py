"""Data as arrays: the data contract, sources, ids, content, interactions, the feature store, the event log."""
