"""Packed sets: a mapped index and a few large shards in place of a file for each clip."""
