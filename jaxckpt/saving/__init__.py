"""One save, from the values to the callbacks: the snapshot, the write, alone or with other processes, now or in the background."""
