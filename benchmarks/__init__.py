"""What things cost, measured: one command each, listed in README.md."""
