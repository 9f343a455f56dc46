"""What the processes of a job compare before a call does anything."""
