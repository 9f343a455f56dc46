"""How a call reaches the files: of every process, or of an IO process, and how bytes get there."""
