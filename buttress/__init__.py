"""Distributed hyperparameter search for models that collapse."""
