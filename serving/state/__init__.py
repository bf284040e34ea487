"""The state of a running service: what is served, and what replaces it."""
