"""Values ↔ named leaves: which names a state's leaves have, which kinds of leaves there are, and how new values get into their places."""
