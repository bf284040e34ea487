"""Content vectors: the shared space of the catalogue's contents."""
