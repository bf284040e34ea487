"""Tracking of runs: MLflow, plots, progress."""
