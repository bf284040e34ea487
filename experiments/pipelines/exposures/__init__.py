"""Learning from exposures: what was shown, what followed, and how often each position is looked at."""
