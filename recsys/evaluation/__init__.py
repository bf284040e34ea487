"""Evaluation: ranking metrics and confidence intervals."""
