"""Loads bundles to serve: the current one, and those of variants beside it."""
