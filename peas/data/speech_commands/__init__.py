"""Speech Commands: its words, and keyword spotting in twelve classes."""
