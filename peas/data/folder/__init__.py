"""A user's own recordings: a folder for each class, or a CSV."""
