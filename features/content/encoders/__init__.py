"""Encoders, one file a model: some run with no network, others are services or models of a hub."""
