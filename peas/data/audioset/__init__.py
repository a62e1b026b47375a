"""AudioSet, in each form that people have it."""
