"""Schemas of requests and responses, and the parser of bodies."""
