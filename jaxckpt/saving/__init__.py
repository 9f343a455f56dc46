"""One save, from the values to the callbacks: the snapshot, the write, alone or with other processes, now or in the background.

`save` has its steps, `snapshot` fixes the values. `saves` orders those of one Checkpoint, and `background` runs them beside the program.
"""
