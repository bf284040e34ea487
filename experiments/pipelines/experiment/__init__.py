"""Offline experiments: variants on one split, with several seeds, compared by a rule that was written before."""
