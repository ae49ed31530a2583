"""What a trainer is given, the shared training loop, and the start of a run outside a sweep."""
