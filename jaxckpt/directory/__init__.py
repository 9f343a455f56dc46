"""The checkpoints of one directory: their numbers, the state file that lists them, its lock, and which of them are kept.

* `paths` checks what a caller gives; `free_numbers` chooses the number of a save, and reserves it.
* `state_file` is the file `checkpoint`: its records, their text, reading and replacing it; `lock` keeps other writers out.
* `on_disk` finds what there is of what the file lists; `retention` has the rules for what is listed, kept and deleted (pure).
* `registration` makes a checkpoint the latest; `series` does it for a manager, which also deletes; `hooks` call them around a save.
* `listing` tells the manager's callers what there is; `latest` and `following` tell readers which checkpoint is the latest.
* `foreign_runs` recognises other programs' checkpoints; `steps` follows which step was saved last; `ask` lets one process of a job
  look, and tells the others.
"""
