"""The state of a sweep: a function of its journal."""
