"""The meeting at the beginning of a call: the processes of a job compare their calls and their leaves before anything is done."""
