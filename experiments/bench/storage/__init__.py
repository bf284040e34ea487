"""Benchmarks of the log and the feature store."""
