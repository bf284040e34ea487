"""The bundle: everything that a training run hands to the service."""
