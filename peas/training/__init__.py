"""What makes a run exact and safe: random numbers, processes, folders, checkpoints."""
