"""`peas data`: one module a verb."""
