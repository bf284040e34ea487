"""Learning from exposures, judged by simulated people."""
