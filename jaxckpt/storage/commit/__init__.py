"""How a checkpoint appears and disappears. Each path has a committer: `by_rename` for disks, `by_marker` for buckets.

`save` makes a checkpoint. `checkpoints` finds and deletes checkpoints. `presence` notices that an open one was deleted.
`rename_leftovers` finds unfinished work on disks, `marker_leftovers` in buckets, where `leases` say who is at work. `recognition`
tells a checkpoint from other directories.
"""
