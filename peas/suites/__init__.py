"""Adapters to evaluation suites: HEAR, X-ARES, MTEB and s3prl. None of them is a dependency."""
