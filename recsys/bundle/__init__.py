"""The bundle: everything a training run hands to the service."""
