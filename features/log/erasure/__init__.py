"""Erasure of a person from the event log, and the list of the users that were erased."""
