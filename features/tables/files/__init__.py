"""Table files by kind: what a file is, and how parquet, CSV and JSON lines are read."""
