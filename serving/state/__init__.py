"""State of a running service: the snapshot that is served, its updates, encoders and threads."""
