"""Collapse rules: from a stream of reports to a verdict."""
