"""The checkpoints of one directory: their numbers, the state file that lists them, its lock, and which of them are kept.

* `paths` checks paths that callers give; `free_numbers` chooses and reserves the number of a save; `counter` is `save_counter`.
* `state_file` reads and replaces the state file `checkpoint`, which lists the checkpoints and names the latest; `lock` keeps other
  writers out.
* `on_disk` finds which listed checkpoints exist; `retention` has the rules for listing, keeping and deleting (pure).
* `registration` makes a checkpoint the latest; `series` does so for a manager, and deletes old checkpoints; `hooks` call these two
  around a save.
* `listing` returns a manager's checkpoints to its callers; `latest` and `following` find the latest checkpoint for readers.
* `foreign_runs` recognises other programs' checkpoints; `steps` remembers which step was saved last; `ask` lets one process of a job
  look at the files, and gives the result to all processes.
"""
