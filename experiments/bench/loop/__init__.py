"""The loop of a shop, closed over HTTP with simulated people: explore, log, estimate, promote, test."""
