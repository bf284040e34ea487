"""The service: one request, two hops deep."""
