"""What may be wrong with a data set, and the report of it."""
