"""Metrics, baselines, nearest neighbours, and whether two runs differ."""
