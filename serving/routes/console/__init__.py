"""Routes of the console: the state of the service, and previews of lists."""
