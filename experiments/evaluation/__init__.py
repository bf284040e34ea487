"""Offline evaluation of recommenders."""
