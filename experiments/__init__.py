"""Training runs: configuration, splits, training, evaluation, tracking, benchmarks."""
