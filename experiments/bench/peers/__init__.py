"""Other libraries that benchmarks compare with ours, each in its own virtual environment."""
