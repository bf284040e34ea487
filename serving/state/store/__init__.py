"""Keeps the feature store of a running service filled and in step with the log."""
