"""Values ↔ named leaves: the names of the leaves of a value, and how new leaves get into their places. README.md here explains it."""
