"""Pipelines: training, warm start, search of settings, slates of all users."""
