"""Retrieval: nearest-neighbour indexes, filters, and fusion of several queries."""
