"""Routes of one person: what the store knows, and erasure."""
