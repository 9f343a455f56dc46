"""One save, from the values to the callbacks: take the snapshot, write it (now or in the background), commit, run the callbacks.

`save` has the steps, and `snapshot` fixes the values. `saves` orders the saves of one Checkpoint, and `background` runs them beside the
program.
"""
