"""Files that `buttress init own` writes into a user's folder."""
