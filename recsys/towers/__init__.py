"""The two towers: model, losses, training."""
