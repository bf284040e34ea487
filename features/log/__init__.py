"""The event log: accepted events, exposures and item changes on disk."""
