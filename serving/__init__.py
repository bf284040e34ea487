"""The HTTP service: routes, and the state that they share."""
