"""Runs: configuration, splits, training, evaluation, tracking, benchmarks."""
