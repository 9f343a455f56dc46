"""When a checkpoint is there: commit, removal, temporary directories, and what dead processes left."""
