"""Routes of items: read, similar items, and changes while the service runs."""
