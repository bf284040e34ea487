"""Off-policy evaluation of a log: what other policies would have earned on the explored slots."""
