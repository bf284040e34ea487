"""Erasure of a person, and what is known of one, over log, copies of the log, rejected rows, slates and store."""
