"""PEAS's scores, mask position selector, schedule and error cache: pure functions."""
