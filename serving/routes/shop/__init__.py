"""Routes of a shop's files: its rules."""
