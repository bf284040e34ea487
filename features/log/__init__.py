"""The event log: what the service accepted and showed, on disk."""
