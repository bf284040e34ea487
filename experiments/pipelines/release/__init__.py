"""From a result to what is served: promotion, the guard after it, and a training that is repeated."""
