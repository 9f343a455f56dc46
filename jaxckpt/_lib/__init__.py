"""What any room may use: it knows nothing of checkpoints, and imports no other room."""
