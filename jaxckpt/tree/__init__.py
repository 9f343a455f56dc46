"""Values ↔ named leaves: which names the leaves of a state have, and how new values get into their places. The README here explains it."""
