"""How a checkpoint appears and disappears. Each path has a committer: `by_rename` for disks, `by_marker` for buckets.

`save` makes a checkpoint. `committed` finds and deletes checkpoints. `presence` notices that an open one was deleted. `abandoned` finds
unfinished work on disks, `claimed` in buckets.
"""
