"""When a checkpoint is there. Each path has a committer: `by_rename` for disks, `by_marker` for buckets.

`save` makes a checkpoint, `committed` finds and deletes some, and `presence` notices that one goes away. `abandoned` finds unfinished work
on disks, `claimed` in buckets.
"""
