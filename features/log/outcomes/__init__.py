"""What happened after answers: exposures joined with the events that followed them."""
