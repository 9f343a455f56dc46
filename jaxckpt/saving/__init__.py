"""One save, from the values to the callbacks: take the snapshot, write it (now or in the background), commit, run the callbacks."""
