"""The feature store: what changes per user between trainings."""
