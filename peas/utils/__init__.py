"""Small helpers that know nothing of audio."""
