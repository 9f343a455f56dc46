"""The checkpoints of one directory: their numbers, the state file that lists them, its lock, and which of them are kept."""
