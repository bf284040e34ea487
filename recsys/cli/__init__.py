"""The `recsys` command: one file for each group of commands."""
