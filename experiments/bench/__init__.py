"""Benchmarks: `recsys bench NAME`."""
