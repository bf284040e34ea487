"""Running the service: one process, or several that a parent process starts, watches and restarts."""
