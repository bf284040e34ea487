"""Lists of recommended items: how they are made, and how they are answered."""
