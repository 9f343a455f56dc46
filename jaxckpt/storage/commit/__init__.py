"""How a checkpoint appears and disappears: commit, removal, temporary directories, and leftovers of dead processes."""
